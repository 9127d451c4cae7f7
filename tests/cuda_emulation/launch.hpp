// SPDX-License-Identifier: MIT
// Launches, which are refused for the reasons that an sm_90 has.
#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

#include "executor.hpp"
#include "runtime.hpp"
#include "types.hpp"

namespace deq_emulation {

inline cudaError_t validate(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (!kernel) return cudaErrorInvalidDeviceFunction;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaErrorInvalidConfiguration;
  if (grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) return cudaErrorInvalidConfiguration;
  if (block.x == 0 || block.y == 0 || block.z == 0) return cudaErrorInvalidConfiguration;
  if (block.x > 1024 || block.y > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
  if (std::size_t{block.x} * block.y * block.z > max_block_threads)
    return cudaErrorInvalidConfiguration;
  const auto raised = runtime.shared_limits.find(kernel);
  const std::size_t limit =
      raised == runtime.shared_limits.end() ? default_shared_bytes : raised->second;
  if (config.dynamicSmemBytes > limit) return cudaErrorInvalidValue;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttributeID id = config.attrs[i].id;
    // Blocks run one after the other: no clusters, no grid-wide barriers.
    if (id == cudaLaunchAttributeCooperative || id == cudaLaunchAttributeClusterDimension)
      return cudaErrorNotSupported;
  }
  return cudaSuccess;
}

}  // namespace deq_emulation

template <class... ExpTypes, class... ActTypes>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(ExpTypes...),
                               ActTypes&&... args) {
  using namespace deq_emulation;
  static_assert((std::is_trivially_copyable_v<std::decay_t<ExpTypes>> && ...),
                "kernels take what can be copied byte by byte");
  static_assert((std::size_t{0} + ... + sizeof(ExpTypes)) <= 32764, "too many arguments");
  const Lock lock(runtime.mutex);
  if (const cudaError_t error = validate(*config, reinterpret_cast<const void*>(kernel)))
    return runtime.result(error);
  const auto thread =
      [kernel, arguments = std::tuple<std::decay_t<ExpTypes>...>(std::forward<ActTypes>(args)...)] {
        std::apply(kernel, arguments);
      };
  const auto work = [thread, grid = config->gridDim, block = config->blockDim,
                     bytes = config->dynamicSmemBytes] {
    executor.run(grid, block, bytes, thread);
  };
  return runtime.result(runtime.submit(config->stream, work));
}

inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                        int value) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!kernel) return runtime.result(cudaErrorInvalidDeviceFunction);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  const auto bytes = static_cast<std::size_t>(value);
  if (value < 0 || bytes > max_shared_bytes) return runtime.result(cudaErrorInvalidValue);
  runtime.shared_limits[kernel] = bytes;
  return cudaSuccess;
}
template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
