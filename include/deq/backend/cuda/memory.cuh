// SPDX-License-Identifier: MIT
// Memory of the device, from pools: one for all, and one for each recorded graph, whose launches
// use the same places again and again.
#pragma once

#include <atomic>
#include <mutex>
#include <unordered_map>

#include <deq/backend/cuda/runtime.cuh>
#include <deq/core/block_pool.hpp>

namespace deq::cuda {

struct DeviceMemory {
  static void* allocate(std::size_t bytes);
  static void deallocate(void* block) noexcept { cudaFree(block); }
};
using DevicePool = BlockPool<DeviceMemory>;

inline void* DeviceMemory::allocate(std::size_t bytes) {
  void* block = nullptr;
  cudaError_t status = cudaMalloc(&block, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    DevicePool::instance().trim();  // blocks of other sizes that nobody uses
    status = cudaMalloc(&block, bytes);
  }
  require<DeviceError>(status == cudaSuccess, "CUDA: allocate ", bytes,
                       " bytes: ", cudaGetErrorString(status));
  return block;
}

/// The blocks that belong to a recorded graph. Whoever gives one back, it stays with the graph.
class GraphMemory {
 public:
  /// Begins with what nobody else uses.
  GraphMemory() { pool_.take_unused(DevicePool::instance()); }
  ~GraphMemory() {
    Owners& owners = Owners::instance();
    const std::lock_guard lock(owners.mutex);
    owners.count -=
        std::erase_if(owners.of, [this](const auto& entry) { return entry.second == &pool_; });
    DevicePool::instance().take_unused(pool_);
  }
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  void* acquire(std::size_t bytes) {
    void* const block = pool_.acquire(bytes);
    Owners& owners = Owners::instance();
    const std::lock_guard lock(owners.mutex);
    owners.count += owners.of.insert_or_assign(block, &pool_).second;
    return block;
  }
  /// Where a block goes when it is given back.
  static DevicePool& owner(void* block) {
    Owners& owners = Owners::instance();
    if (owners.count != 0) {
      const std::lock_guard lock(owners.mutex);
      const auto found = owners.of.find(block);
      if (found != owners.of.end()) return *found->second;
    }
    return DevicePool::instance();
  }
  std::size_t bytes() const { return pool_.bytes(); }

 private:
  struct Owners {
    std::mutex mutex;
    std::unordered_map<void*, DevicePool*> of;
    std::atomic<std::size_t> count = 0;

    static Owners& instance() {
      static Owners* owners = new Owners;  // outlives every tensor, as the pools do
      return *owners;
    }
  };
  DevicePool pool_;
};

namespace detail {
/// Of the graph that this thread records; null if it records none.
inline GraphMemory*& recorded_memory() {
  static thread_local GraphMemory* memory = nullptr;
  return memory;
}
}  // namespace detail

/// Where the backend's memory comes from.
struct PooledMemory {
  static void* allocate(std::size_t bytes) {
    if (GraphMemory* const memory = detail::recorded_memory()) return memory->acquire(bytes);
    return DevicePool::instance().acquire(bytes);
  }
  static void deallocate(void* p, std::size_t bytes) noexcept {
    GraphMemory::owner(p).release(p, bytes);
  }
};

}  // namespace deq::cuda
