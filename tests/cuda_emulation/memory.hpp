// SPDX-License-Identifier: MIT
// Memory of the runtime API.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "arena.hpp"
#include "runtime.hpp"
#include "types.hpp"

namespace deq_emulation {

inline cudaError_t allocate(void** block, std::size_t bytes) {
  if (!block) return cudaErrorInvalidValue;
  *block = nullptr;
  if (bytes > 0) *block = arena.acquire(bytes);
  return bytes > 0 && !*block ? cudaErrorMemoryAllocation : cudaSuccess;
}

inline cudaError_t deallocate(void* block) {
  return !block || arena.release(block) ? cudaSuccess : cudaErrorInvalidValue;
}

/// Whether [p, p + bytes) is, as a whole, where a copy may reach it.
inline bool is_valid(const void* p, std::size_t bytes, bool device) {
  return device ? arena.is_live(p, bytes) : p && !arena.contains(p);
}
inline bool is_pinned(const void* p) {
  const auto next = runtime.pinned.upper_bound(p);
  if (next == runtime.pinned.begin()) return false;
  const auto& [begin, bytes] = *std::prev(next);
  return static_cast<const char*>(p) < static_cast<const char*>(begin) + bytes;
}

inline cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                        cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (kind == cudaMemcpyDefault) {
    to_device = arena.contains(to);
    from_device = arena.contains(from);
  }
  if (!is_valid(to, bytes, to_device) || !is_valid(from, bytes, from_device))
    return cudaErrorInvalidValue;
  // The device itself starts the copies of a conditional node's body: it knows no pageable memory.
  const Capture& capture = runtime.stream(stream).capture;
  if (capture.graph && capture.graph->is_body &&
      ((!to_device && !is_pinned(to)) || (!from_device && !is_pinned(from))))
    return cudaErrorInvalidValue;
  return runtime.submit(stream, [=] { std::memmove(to, from, bytes); });
}

inline cudaError_t fill(void* block, int value, std::size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!arena.is_live(block, bytes)) return cudaErrorInvalidValue;
  return runtime.submit(stream, [=] { std::memset(block, value, bytes); });
}

}  // namespace deq_emulation

inline cudaError_t cudaMalloc(void** block, std::size_t bytes) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.unsafe_call();
  return runtime.result(error ? error : allocate(block, bytes));
}
template <class T>
cudaError_t cudaMalloc(T** block, std::size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(block), bytes);
}

inline cudaError_t cudaFree(void* block) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.unsafe_call();
  return runtime.result(error ? error : deallocate(block));
}

// CUDA can capture these two; the emulation cannot.
inline cudaError_t cudaMallocAsync(void** block, std::size_t bytes, cudaStream_t stream) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.not_capturable(stream);
  return runtime.result(error ? error : allocate(block, bytes));
}
template <class T>
cudaError_t cudaMallocAsync(T** block, std::size_t bytes, cudaStream_t stream) {
  return cudaMallocAsync(reinterpret_cast<void**>(block), bytes, stream);
}
inline cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.not_capturable(stream);
  return runtime.result(error ? error : deallocate(block));
}

inline cudaError_t cudaMallocHost(void** block, std::size_t bytes) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (const cudaError_t error = runtime.unsafe_call()) return runtime.result(error);
  if (!block) return runtime.result(cudaErrorInvalidValue);
  *block = bytes == 0 ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*block) runtime.pinned.emplace(*block, bytes);
  return runtime.result(bytes > 0 && !*block ? cudaErrorMemoryAllocation : cudaSuccess);
}
template <class T>
cudaError_t cudaMallocHost(T** block, std::size_t bytes) {
  return cudaMallocHost(reinterpret_cast<void**>(block), bytes);
}
inline cudaError_t cudaFreeHost(void* block) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (const cudaError_t error = runtime.unsafe_call()) return runtime.result(error);
  if (!block) return cudaSuccess;
  if (runtime.pinned.erase(block) == 0) return runtime.result(cudaErrorInvalidValue);
  std::free(block);
  return cudaSuccess;
}

inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t stream = nullptr) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(copy(to, from, bytes, kind, stream));
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.unsafe_call();
  return runtime.result(error ? error : copy(to, from, bytes, kind, nullptr));
}
inline cudaError_t cudaMemsetAsync(void* block, int value, std::size_t bytes,
                                   cudaStream_t stream = nullptr) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(fill(block, value, bytes, stream));
}
inline cudaError_t cudaMemset(void* block, int value, std::size_t bytes) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const cudaError_t error = runtime.unsafe_call();
  return runtime.result(error ? error : fill(block, value, bytes, nullptr));
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  *total = Arena::capacity;
  *free = Arena::capacity - arena.live_bytes();
  return cudaSuccess;
}
