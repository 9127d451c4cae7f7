// SPDX-License-Identifier: MIT
// How kernels are started, and the shapes of grid that most of them share.
#pragma once

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>

#include <deq/backend/cuda/runtime.cuh>
#include <deq/core/types.hpp>

namespace deq::cuda {

inline constexpr int warp_threads = 32;
/// Threads of a block, but for few kernels.
inline constexpr int threads = 256;

template <class T>
constexpr T divide_up(T a, T b) {
  return (a + b - 1) / b;
}

/// Multiprocessors of the device.
inline Index processors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "find the device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
        "count multiprocessors");
  return count;
}

/// A kernel may have so much shared memory from now on. The limit is the process's: another thread,
/// or a graph, may be about to launch the same kernel with more.
inline void allow_shared_memory(const void* kernel, std::size_t bytes) {
  static std::mutex mutex;
  static std::unordered_map<const void*, std::size_t> allowed;
  const std::lock_guard lock(mutex);
  std::size_t& most = allowed[kernel];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(bytes)),
        "ask for shared memory");
  most = bytes;
}

/// Kernels with fewer blocks than there are processors go first, where several are ready: they
/// leave room for others, and what comes after them need not wait. Beside each other, as in a
/// recorded f, they would otherwise queue behind all blocks of the large ones.
inline cudaLaunchAttribute priority_of(Index blocks) {
  static const int greatest = [] {
    int of_all = 0, first = 0;
    check(cudaDeviceGetStreamPriorityRange(&of_all, &first), "ask for priorities");
    return first;
  }();
  cudaLaunchAttribute priority{};
  priority.id = cudaLaunchAttributePriority;
  priority.val.priority = blocks < processors() ? greatest : 0;
  return priority;
}

/// Blocks and threads of a launch; with no blocks there is nothing to do.
struct Grid {
  Index x = 1, y = 1, z = 1;
  int block = threads;
  std::size_t shared_bytes = 0;
};

/// Runs kernel(arguments...) in the stream.
template <class... Parameters, class... Arguments>
void launch(const Grid& grid, void (*kernel)(Parameters...), Arguments&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  // What a kernel gets without asking is 48 KiB, of which it may use 16 for arrays of its own.
  constexpr std::size_t unasked = 32 << 10;
  if (grid.shared_bytes > unasked)
    allow_shared_memory(reinterpret_cast<const void*>(kernel), grid.shared_bytes);
  require<DeviceError>(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535,
                       "CUDA: too large a grid: ", grid.x, " x ", grid.y, " x ", grid.z);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(grid.block));
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = stream();
  cudaLaunchAttribute priority = priority_of(grid.x * grid.y * grid.z);
  config.attrs = &priority;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...),
        "launch a kernel");
}

/// The shared memory of a launch with shared_bytes.
#ifdef __CUDACC__
template <class T>
__device__ T* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char deq_dynamic_shared[];
  return reinterpret_cast<T*>(deq_dynamic_shared);
}
#else
template <class T>
T* dynamic_shared() {
  return static_cast<T*>(deq_emulation::dynamic_shared());
}
#endif

namespace detail {
inline Samples& rows_in_use() {
  static thread_local Samples rows;
  return rows;
}
}  // namespace detail

/// The rows of batches, one a sample, that a kernel has to compute: all of them, or those that are
/// in the set of a Rows scope.
struct RowSet {
  const Index* id = nullptr;
  DEQ_HOST_DEVICE bool contains(Index row) const { return !id || id[row] >= 0; }

  /// Of a batch of `count` samples.
  static RowSet of(Index count) {
    const Samples& rows = detail::rows_in_use();
    return {rows.count == count ? rows.id : nullptr};
  }
};

/// While it lives, kernels leave out rows of batches of a.count samples that belong to nobody.
class Rows {
 public:
  explicit Rows(Samples a) : before_(std::exchange(detail::rows_in_use(), a)) {}
  ~Rows() { detail::rows_in_use() = before_; }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

 private:
  Samples before_;
};

/// Throws InvalidArgument for what is taken of a whole batch where some of its samples may not have
/// been computed.
inline void require_all_rows(Index count, const char* what) {
  require(!RowSet::of(count).id, "CUDA: ", what,
          " inside of f would be those of the samples that have not converged");
}

/// Which of the threads of a one-dimensional grid this is.
__device__ inline Index thread_index() {
  return static_cast<Index>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <class Body>
__global__ void index_kernel(Index n, Body body) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = thread_index(); i < n; i += stride) body(i);
}
/// Blocks that are enough for every device; with more to do, each does several things.
inline constexpr Index enough_blocks = 1 << 16;
/// A thread for each of n indices, or for several of them.
inline Grid grid_of(Index n) {
  return {.x = std::min<Index>(divide_up<Index>(n, threads), enough_blocks)};
}
/// body(i) for i in [0, n), neighbours by neighbouring threads.
template <class Body>
void for_each_index(Index n, Body body) {
  launch(grid_of(n), index_kernel<Body>, n, body);
}

/// The same for samples, of which there are few and each has much to do in memory of its own, where
/// threads of a warp would wait for each other: as few samples a block as there are processors for.
template <class Body>
void for_each_sample(Index n, Body body) {
  const Index a_block = std::clamp<Index>(divide_up(n, 8 * processors()), 1, warp_threads);
  launch({.x = divide_up(n, a_block), .block = static_cast<int>(a_block)}, index_kernel<Body>, n,
         body);
}

}  // namespace deq::cuda
