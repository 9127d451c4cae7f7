// SPDX-License-Identifier: MIT
// Memory of the device, from pools: one for all, and one for each recorded graph, whose launches
// use the same places again and again.
#pragma once

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include <deq/backend/cuda/runtime.cuh>
#include <deq/core/block_pool.hpp>

namespace deq::cuda {

/// Blocks of the device by cudaMalloc, all of which are known.
struct DeviceMemory {
  static void* allocate(std::size_t bytes);
  static void deallocate(void* block) noexcept;
};
using DevicePool = BlockPool<DeviceMemory>;

namespace detail {
/// Every block there is, and to which graph it belongs, if to any.
struct DeviceBlocks {
  struct Block {
    std::size_t bytes;
    DevicePool* graph = nullptr;
  };
  std::mutex mutex;
  std::unordered_map<void*, Block> of;
  std::atomic<int> graphs = 0;

  static DeviceBlocks& instance() {
    static DeviceBlocks* blocks = new DeviceBlocks;  // outlives every tensor, as the pools do
    return *blocks;
  }
};
}  // namespace detail

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
  detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
  const std::lock_guard lock(blocks.mutex);
  blocks.of[block] = {bytes};
  return block;
}
inline void DeviceMemory::deallocate(void* block) noexcept {
  detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
  {
    const std::lock_guard lock(blocks.mutex);
    blocks.of.erase(block);
  }
  cudaFree(block);
}

/// The blocks that a recorded graph may name: those it was given while it was recorded, and
/// whatever was in use when that began. Whoever gives one back, it stays with the graph.
class GraphMemory {
 public:
  /// Begins with what nobody else uses.
  GraphMemory() {
    pool_.take_unused(DevicePool::instance(), [](void*) { return true; });
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    const std::lock_guard lock(blocks.mutex);
    ++blocks.graphs;
    std::unordered_set<void*> unused;
    pool_.for_each_unused([&](void* block) { unused.insert(block); });
    for (auto& [block, entry] : blocks.of)
      if (!entry.graph && !unused.contains(block)) entry.graph = &pool_;
  }
  ~GraphMemory() {
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    const std::lock_guard lock(blocks.mutex);
    --blocks.graphs;
    for (auto& [block, entry] : blocks.of)
      if (entry.graph == &pool_) entry.graph = nullptr;
    DevicePool::instance().take_unused(pool_, [](void*) { return true; });
  }
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  void* acquire(std::size_t bytes) {
    void* const block = pool_.acquire(bytes);
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    const std::lock_guard lock(blocks.mutex);
    auto& entry = blocks.of.at(block);
    if (!std::exchange(entry.graph, &pool_)) bytes_ += entry.bytes;
    return block;
  }
  /// Nothing more is recorded: what was not needed is everybody's again.
  void settle() {
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    const std::lock_guard lock(blocks.mutex);
    DevicePool::instance().take_unused(
        pool_, [&](void* block) { return blocks.of.at(block).graph == nullptr; });
  }
  /// Gives a block back to whom it belongs.
  static void release(void* block, std::size_t bytes) noexcept {
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    if (blocks.graphs == 0) return DevicePool::instance().release(block, bytes);
    const std::lock_guard lock(blocks.mutex);
    DevicePool* const graph = blocks.of.at(block).graph;
    (graph ? *graph : DevicePool::instance()).release(block, bytes);
  }
  /// Of the blocks that were given out while recording.
  std::size_t bytes() const { return bytes_; }

 private:
  DevicePool pool_;
  std::size_t bytes_ = 0;
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
  static void deallocate(void* p, std::size_t bytes) noexcept { GraphMemory::release(p, bytes); }
};

}  // namespace deq::cuda
