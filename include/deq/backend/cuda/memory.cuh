// SPDX-License-Identifier: MIT
// Memory of the device, from pools: one for all, and one for each recorded graph, whose launches
// use the same places again and again.
#pragma once

#include <atomic>
#include <list>
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
    std::size_t lane = 0;  ///< in which it was given out; 0: in none
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

/// Works side by side, for others that go on with them; 0: none yet.
struct Lanes {
  std::size_t first = 0;  ///< the number of lane 0, those of the others follow
};

/// The blocks that a recorded graph may name: those it was given while it was recorded, and
/// whatever was in use when that began. Whoever gives one back, it stays with the graph.
class GraphMemory {
  struct Lane {
    Lane(std::size_t own, std::size_t earlier) : id(own), goes_on(earlier) {}
    bool owns(std::size_t lane) const { return lane == id || (goes_on && lane == goes_on); }
    std::size_t id;
    std::size_t goes_on;  ///< the lane whose work it goes on with, or 0
    DevicePool pool;      ///< given back in this lane, which owns it
  };

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
    void* block = lane_ ? lane_->pool.acquire_unused(bytes) : nullptr;
    if (!block) block = pool_.acquire(bytes);
    detail::DeviceBlocks& blocks = detail::DeviceBlocks::instance();
    const std::lock_guard lock(blocks.mutex);
    auto& entry = blocks.of.at(block);
    if (!std::exchange(entry.graph, &pool_)) bytes_ += entry.bytes;
    entry.lane = lane_ ? lane_->id : 0;
    return block;
  }

  /// Works that are recorded one after the other, by one thread, but run at the same time. What one
  /// of them gives back, it alone may have again before all of them are done, and only what no
  /// other can know.
  class SideBySide {
   public:
    SideBySide(GraphMemory& memory, Lanes& lanes, std::size_t count)
        : memory_(memory), first_(next_id().fetch_add(count)), earlier_(lanes.first) {
      if (!lanes.first) lanes.first = first_;
    }
    ~SideBySide() {
      memory_.lane_ = nullptr;
      for (Lane& lane : lanes_) memory_.pool_.take_unused(lane.pool, [](void*) { return true; });
      memory_.pool_.take_unused(memory_.later_, [](void*) { return true; });
    }
    SideBySide(const SideBySide&) = delete;
    SideBySide& operator=(const SideBySide&) = delete;

    void begin_lane() {
      const std::size_t earlier = earlier_ ? earlier_ + lanes_.size() : 0;
      memory_.lane_ = &lanes_.emplace_back(first_ + lanes_.size(), earlier);
    }

   private:
    /// Of all lanes there are: blocks remember theirs.
    static std::atomic<std::size_t>& next_id() {
      static std::atomic<std::size_t> id = 1;
      return id;
    }

    GraphMemory& memory_;
    std::size_t first_, earlier_;
    std::list<Lane> lanes_;
  };
  /// Whether a lane is being recorded.
  bool in_lane() const { return lane_ != nullptr; }

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
    const detail::DeviceBlocks::Block& entry = blocks.of.at(block);
    (entry.graph ? pool_for(entry) : DevicePool::instance()).release(block, bytes);
  }
  /// Of the blocks that were given out while recording.
  std::size_t bytes() const { return bytes_; }

  /// Of the graph that this thread records; null if it records none.
  static GraphMemory*& recorded() {
    static thread_local GraphMemory* memory = nullptr;
    return memory;
  }

 private:
  /// Where a block of a graph is given back to.
  static DevicePool& pool_for(const detail::DeviceBlocks::Block& entry) {
    GraphMemory* const memory = recorded();
    if (!memory || !memory->lane_ || entry.graph != &memory->pool_) return *entry.graph;
    return memory->lane_->owns(entry.lane) ? memory->lane_->pool : memory->later_;
  }

  DevicePool pool_, later_;
  std::size_t bytes_ = 0;
  Lane* lane_ = nullptr;
};

/// Where the backend's memory comes from.
struct PooledMemory {
  static void* allocate(std::size_t bytes) {
    if (GraphMemory* const memory = GraphMemory::recorded()) return memory->acquire(bytes);
    return DevicePool::instance().acquire(bytes);
  }
  static void deallocate(void* p, std::size_t bytes) noexcept { GraphMemory::release(p, bytes); }
};

}  // namespace deq::cuda
