// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

namespace deq {

/// Memory that is handed out again once it has been given back: after the first solve, VJP or
/// training step of a given size nothing is requested from the system any more. Sizes are rounded
/// up to one of eight classes an octave (at most 12.5 % lost). A thread gets what it gave back
/// itself, as long as there is any: that is in the caches of its own core. Where there is no block
/// of its size, a large request takes one that is up to twice as large: the phases of a computation
/// share their memory, though their sizes differ.
/// `System::allocate(bytes)` and `System::deallocate(block)` are where the memory is from.
template <class System>
class BlockPool {
 public:
  static BlockPool& instance() {
    // Never destroyed: tensors with static storage may outlive any order of destruction.
    static BlockPool* pool = new BlockPool;
    return *pool;
  }

  void* acquire(std::size_t bytes) {
    if (void* block = acquire_unused(bytes)) return block;
    const std::size_t c = size_class(bytes);
    void* const block = System::allocate(class_bytes(c));
    system_requests_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(class_bytes(c), std::memory_order_relaxed);
    return block;
  }

  void release(void* block, std::size_t bytes) noexcept {
    const std::size_t c = class_of(block, bytes);
    Shelf& shelf = shelves_[own_shelf()];
    const std::lock_guard lock(shelf.mutex);
    shelf.free[c].push_back(block);
  }

  /// Returns every unused block to the system.
  void trim() {
    for (Shelf& shelf : shelves_)
      for (std::size_t c = 0; c < classes; ++c) {
        std::vector<void*> blocks;
        {
          const std::lock_guard lock(shelf.mutex);
          blocks.swap(shelf.free[c]);
        }
        for (void* block : blocks) {
          System::deallocate(block);
          bytes_.fetch_sub(class_bytes(c), std::memory_order_relaxed);
        }
      }
  }

  /// How often the system was asked for memory so far, by all pools of its kind; constant in a
  /// steady state.
  std::uint64_t system_requests() const { return system_requests_.load(); }
  /// Bytes that all pools of this kind hold from the system, in use or not.
  std::size_t bytes() const { return bytes_.load(); }

 private:
  static constexpr std::size_t classes = 8 * 58;
  static constexpr std::size_t large = 512 * 1024;

  /// Class 8 * o + k holds blocks of up to (9 + k) * 8 * 2^o bytes: 72, 80, ..., 128, 144, 160, ...
  static std::size_t size_class(std::size_t bytes) {
    if (bytes <= 64) bytes = 65;
    const auto octave = static_cast<std::size_t>(std::bit_width((bytes - 1) >> 6)) - 1;
    const std::size_t step = std::size_t{8} << octave;
    return 8 * octave + (bytes + step - 1) / step - 9;
  }
  static std::size_t class_bytes(std::size_t c) {
    return (std::size_t{8} << (c / 8)) * (9 + c % 8);
  }

  /// Unused blocks; threads share one only where there are many threads.
  struct alignas(64) Shelf {
    std::mutex mutex;
    std::array<std::vector<void*>, classes> free;

    void* take(std::size_t c) {
      const std::lock_guard lock(mutex);
      if (free[c].empty()) return nullptr;
      void* block = free[c].back();
      free[c].pop_back();
      return block;
    }
  };
  /// Null where the system would have to be asked.
  void* acquire_unused(std::size_t bytes) {
    const std::size_t c = size_class(bytes), own = own_shelf();
    for (std::size_t i = 0; i < shelves_.size(); ++i)
      if (void* block = shelves_[(own + i) % shelves_.size()].take(c)) return block;
    return bytes >= large ? take_wider(c, own) : nullptr;
  }

  /// A free block of one of the next larger classes; null if there is none.
  void* take_wider(std::size_t c, std::size_t own) {
    WideBlocks& known = wide();
    const std::lock_guard lock(known.mutex);
    known.blocks.reserve(known.blocks.size() + 1);
    for (std::size_t wider = c + 1; wider <= c + 8 && wider < classes; ++wider)
      for (std::size_t i = 0; i < shelves_.size(); ++i)
        if (void* block = shelves_[(own + i) % shelves_.size()].take(wider)) {
          known.blocks.emplace_back(block, wider);
          return block;
        }
    return nullptr;
  }
  /// The class of a block that was handed out for a request of this size.
  std::size_t class_of(void* block, std::size_t bytes) {
    if (bytes < large) return size_class(bytes);
    WideBlocks& known = wide();
    const std::lock_guard lock(known.mutex);
    const auto it = std::find_if(known.blocks.begin(), known.blocks.end(),
                                 [&](const auto& entry) { return entry.first == block; });
    if (it == known.blocks.end()) return size_class(bytes);
    const std::size_t c = it->second;
    *it = known.blocks.back();
    known.blocks.pop_back();
    return c;
  }
  std::size_t own_shelf() {
    static std::atomic<std::size_t> threads{0};
    static thread_local const std::size_t own = threads.fetch_add(1) % shelves_.size();
    return own;
  }

  std::array<Shelf, 8> shelves_;
  /// Blocks that are larger than asked for, and their classes. Never destroyed, as the pool.
  struct WideBlocks {
    std::mutex mutex;
    std::vector<std::pair<void*, std::size_t>> blocks;
  };
  static WideBlocks& wide() {
    static WideBlocks* blocks = new WideBlocks;
    return *blocks;
  }
  static inline std::atomic<std::uint64_t> system_requests_{0};
  static inline std::atomic<std::size_t> bytes_{0};
};

}  // namespace deq
