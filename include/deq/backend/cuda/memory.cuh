// SPDX-License-Identifier: MIT
// Memory of the device, from pools: one for all, and one for each recorded graph, whose launches
// use the same places again and again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <list>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <deq/backend/cuda/ranges.hpp>
#include <deq/backend/cuda/runtime.cuh>
#include <deq/core/types.hpp>

namespace deq::cuda {

class GraphMemory;

/// Memory that is handed out again once it has been given back: in the steady state of a series of
/// solves, VJPs or training steps of one size nothing is requested from the system any more. With
/// DEQ_CUDA_MEMORY_APART=1 in the environment every request has an allocation of its own, which is
/// freed when it is given back, for compute-sanitizer to see what is read or written outside.
class DevicePool {
 public:
  static DevicePool& instance() {
    static DevicePool* pool = new DevicePool;  // outlives every tensor
    return *pool;
  }

  void* acquire(std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    std::optional<Range> range = take(unused_, bytes);
    if (!range) {
      unused_.put(allocate(bytes));
      range = take(unused_, bytes);
    }
    used_[range->begin].range = *range;
    return range->begin;
  }
  /// Gives a block back to whom it belongs.
  void release(void* block) noexcept;

  /// Returns to the system every allocation of which nothing is used.
  void trim() {
    const std::lock_guard lock(mutex_);
    trim_locked();
  }
  /// Bytes that are held from the system, in use or not, by graphs as well.
  std::size_t bytes() const {
    const std::lock_guard lock(mutex_);
    return bytes_;
  }
  /// The most that were held at any time since the last reset_peak().
  std::size_t peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_bytes_;
  }
  void reset_peak() {
    const std::lock_guard lock(mutex_);
    peak_bytes_ = bytes_;
  }

 private:
  friend class GraphMemory;
  struct Block {
    Range range;
    std::vector<GraphMemory*> graphs = {};  ///< that may name it
    std::size_t lane = 0;                   ///< in which it was given out; 0: in none
    bool given_back = false;                ///< but several graphs name it
  };

  DevicePool() {
    const char* const apart = std::getenv("DEQ_CUDA_MEMORY_APART");
    apart_ = apart && std::string_view(apart) != "0";
  }

  /// What the system hands out, and small requests share.
  static constexpr std::size_t granularity = 2 << 20, small = 1 << 20;
  static constexpr std::size_t alignment = 512, least = 4;
  static constexpr std::size_t rounded(std::size_t bytes, std::size_t to) {
    return bytes == 0 ? to : (bytes + to - 1) / to * to;
  }

  /// Small requests leave large ranges whole.
  std::optional<Range> take(Ranges& unused, std::size_t bytes) const {
    constexpr std::size_t any = std::numeric_limits<std::size_t>::max();
    if (apart_) return unused.take(rounded(bytes, least), rounded(bytes, least));
    return unused.take(rounded(bytes, alignment), bytes < small ? granularity : any);
  }
  /// Memory of the system for a request of this size.
  Range allocate(std::size_t bytes) {
    bytes = rounded(bytes, apart_ ? least : granularity);
    void* block = nullptr;
    cudaError_t status = cudaMalloc(&block, bytes);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      trim_locked();
      status = cudaMalloc(&block, bytes);
    }
    require<DeviceError>(status == cudaSuccess, "CUDA: allocate ", bytes,
                         " bytes: ", cudaGetErrorString(status));
    char* const begin = static_cast<char*>(block);
    allocations_[begin] = bytes;
    bytes_ += bytes;
    peak_bytes_ = std::max(peak_bytes_, bytes_);
    return {begin, bytes, begin};
  }
  void trim_locked() {
    for (auto at = allocations_.begin(); at != allocations_.end();) {
      const Range whole{at->first, at->second, at->first};
      if (!unused_.contains(whole)) {
        ++at;
        continue;
      }
      unused_.cut(whole);
      cudaFree(whole.begin);
      bytes_ -= whole.bytes;
      at = allocations_.erase(at);
    }
  }

  bool apart_ = false;
  mutable std::mutex mutex_;  ///< of this, and of all graphs' memory
  std::unordered_map<char*, std::size_t> allocations_;
  std::size_t bytes_ = 0, peak_bytes_ = 0;
  std::unordered_map<void*, Block> used_;
  Ranges unused_;
};

/// Counters for kernels all of whose blocks count up to a limit, of which the last brings a counter
/// back to 0 (atomicInc): they are 0 for every launch that is given them.
class Counters {
 public:
  Counters() = default;
  ~Counters() {
    for (unsigned* block : blocks_) cudaFree(block);
  }
  Counters(const Counters&) = delete;
  Counters& operator=(const Counters&) = delete;

  /// The same ones again, for launches that follow each other.
  unsigned* first(std::size_t n) {
    const std::lock_guard lock(mutex_);
    if (blocks_.empty() || n > size_) grow(n);
    return blocks_.back();
  }
  /// Nobody else's, for launches that may run at the same time as others.
  unsigned* next(std::size_t n) {
    const std::lock_guard lock(mutex_);
    if (blocks_.empty() || used_ + n > size_) grow(n);
    return blocks_.back() + std::exchange(used_, used_ + n);
  }

 private:
  /// Earlier ones stay: work that uses them may be on its way.
  void grow(std::size_t n) {
    constexpr std::size_t least = 1 << 14;
    n = std::max({n, 2 * size_, least});
    unsigned* block = nullptr;
    check(cudaMalloc(&block, n * sizeof *block), "allocate counters");
    blocks_.push_back(block);
    size_ = n;
    used_ = 0;
    // In a stream of its own, since something may be recorded in the other.
    const cudaStream_t stream = detail::new_stream();
    const cudaError_t status = cudaMemsetAsync(block, 0, n * sizeof *block, stream);
    const cudaError_t done = cudaStreamSynchronize(stream);
    cudaStreamDestroy(stream);
    check(status, "clear counters");
    check(done, "wait for counters");
  }

  std::mutex mutex_;
  std::vector<unsigned*> blocks_;
  std::size_t size_ = 0, used_ = 0;  ///< of the last one
};

/// The lanes of works that were recorded side by side, for later works to go on in: each finds
/// there what the one before it in its lane has given back. 0: none yet.
struct Lanes {
  std::size_t first = 0;  ///< the number of lane 0, those of the others follow
};

/// The memory that a recorded graph may name: what it was given while it was recorded, and whatever
/// was in use when that began. Whoever gives it back, it stays with the graph.
class GraphMemory {
  struct Lane {
    Lane(std::size_t own, std::size_t earlier) : id(own), goes_on(earlier) {}
    bool owns(std::size_t lane) const { return lane == id || (goes_on && lane == goes_on); }
    std::size_t id;
    std::size_t goes_on;  ///< the lane whose work it goes on with, or 0
    Ranges unused;        ///< given back in this lane, which owns it
  };

 public:
  /// Begins with what nobody else uses, less the allocations of which nobody uses anything: what is
  /// recorded finds places for its largest blocks before small ones lie in them.
  GraphMemory() {
    const std::lock_guard lock(all_.mutex_);
    all_.trim_locked();
    unused_.put_all(all_.unused_);
    for (const auto& [begin, range] : unused_) untouched_.put(range);
    for (auto& [place, block] : all_.used_)
      if (!block.given_back) block.graphs.push_back(this);
  }
  ~GraphMemory() {
    const std::lock_guard lock(all_.mutex_);
    for (auto at = all_.used_.begin(); at != all_.used_.end();) {
      DevicePool::Block& block = at->second;
      std::erase(block.graphs, this);
      if (block.given_back && block.graphs.empty()) {
        unused_.put(block.range);
        at = all_.used_.erase(at);
      } else {
        ++at;
      }
    }
    all_.unused_.put_all(unused_);
    if (all_.apart_) all_.trim_locked();
  }
  GraphMemory(const GraphMemory&) = delete;
  GraphMemory& operator=(const GraphMemory&) = delete;

  void* acquire(std::size_t bytes) {
    const std::lock_guard lock(all_.mutex_);
    std::optional<Range> range;
    if (lane_) range = all_.take(lane_->unused, bytes);
    if (!range) range = all_.take(unused_, bytes);
    if (!range) {
      const Range allocated = all_.allocate(bytes);
      unused_.put(allocated);
      untouched_.put(allocated);
      range = all_.take(unused_, bytes);
    }
    bytes_ += untouched_.cut(*range);
    all_.used_[range->begin] = {*range, {this}, lane_ ? lane_->id : 0};
    return range->begin;
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
      const std::lock_guard lock(memory_.all_.mutex_);
      memory_.lane_ = nullptr;
      for (Lane& lane : lanes_) memory_.unused_.put_all(lane.unused);
      memory_.unused_.put_all(memory_.later_);
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
    const std::lock_guard lock(all_.mutex_);
    for (const auto& [begin, range] : untouched_) unused_.cut(range);
    all_.unused_.put_all(untouched_);
  }
  /// Of what was given out while recording.
  std::size_t bytes() const { return bytes_; }
  Counters& counters() { return counters_; }

  /// Of the graph that this thread records; null if it records none.
  static GraphMemory*& recorded() {
    static thread_local GraphMemory* memory = nullptr;
    return memory;
  }

 private:
  friend class DevicePool;
  /// Where a block of this graph is given back to.
  Ranges& unused_for(const DevicePool::Block& block) {
    if (recorded() != this || !lane_) return unused_;
    return lane_->owns(block.lane) ? lane_->unused : later_;
  }

  DevicePool& all_ = DevicePool::instance();
  Ranges unused_, later_;
  Ranges untouched_;  ///< what of the unused has not been given out since the recording began
  std::size_t bytes_ = 0;
  Lane* lane_ = nullptr;
  Counters counters_;
};

inline void DevicePool::release(void* block) noexcept {
  const std::lock_guard lock(mutex_);
  const auto at = used_.find(block);
  Block& given_back = at->second;
  if (given_back.graphs.size() > 1) {  // stays where it is until all of them are gone
    given_back.given_back = true;
    return;
  }
  (given_back.graphs.empty() ? unused_ : given_back.graphs[0]->unused_for(given_back))
      .put(given_back.range);
  used_.erase(at);
  if (apart_) trim_locked();
}

/// n counters for the next launch, see Counters: of a graph, where launches may run side by side,
/// each has its own.
inline unsigned* counters(Index n) {
  static Counters* const of_stream = new Counters;  // outlives every tensor
  const auto size = static_cast<std::size_t>(n);
  if (GraphMemory* const graph = GraphMemory::recorded()) return graph->counters().next(size);
  return of_stream->first(size);
}

/// Where the backend's memory comes from.
struct PooledMemory {
  static void* allocate(std::size_t bytes) {
    if (GraphMemory* const memory = GraphMemory::recorded()) return memory->acquire(bytes);
    return DevicePool::instance().acquire(bytes);
  }
  static void deallocate(void* p, std::size_t) noexcept { DevicePool::instance().release(p); }
};

}  // namespace deq::cuda
