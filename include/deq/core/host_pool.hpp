// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace deq {

/// Host memory that is handed out again once it has been given back: after the first solve, VJP or
/// training step of a given size nothing is requested from the system any more. Blocks are 64-byte
/// aligned; sizes are rounded up to one of eight classes an octave (at most 12.5 % lost). A thread
/// gets what it gave back itself, as long as there is any: that is in the caches of its own core.
class HostPool {
 public:
  static HostPool& instance() {
    // Never destroyed: tensors with static storage may outlive any order of destruction.
    static HostPool* pool = new HostPool;
    return *pool;
  }

  void* acquire(std::size_t bytes) {
    const std::size_t c = size_class(bytes), own = own_shelf();
    for (std::size_t i = 0; i < shelves_.size(); ++i)
      if (void* block = shelves_[(own + i) % shelves_.size()].take(c)) return block;
    system_requests_.fetch_add(1, std::memory_order_relaxed);
    bytes_.fetch_add(class_bytes(c), std::memory_order_relaxed);
    return ::operator new (class_bytes(c), std::align_val_t{alignment});
  }

  void release(void* block, std::size_t bytes) noexcept {
    Shelf& shelf = shelves_[own_shelf()];
    const std::lock_guard lock(shelf.mutex);
    shelf.free[size_class(bytes)].push_back(block);
  }

  /// Returns every unused block to the system.
  void trim() {
    for (Shelf& shelf : shelves_) {
      const std::lock_guard lock(shelf.mutex);
      for (std::size_t c = 0; c < classes; ++c) {
        for (void* block : shelf.free[c]) {
          ::operator delete (block, std::align_val_t{alignment});
          bytes_.fetch_sub(class_bytes(c), std::memory_order_relaxed);
        }
        shelf.free[c].clear();
      }
    }
  }

  /// How often the system was asked for memory so far; constant in a steady state.
  std::uint64_t system_requests() const { return system_requests_.load(); }
  /// Bytes held from the system, in use or not.
  std::size_t bytes() const { return bytes_.load(); }

 private:
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t classes = 8 * 58;

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
  std::size_t own_shelf() {
    static std::atomic<std::size_t> threads{0};
    static thread_local const std::size_t own = threads.fetch_add(1) % shelves_.size();
    return own;
  }

  std::array<Shelf, 8> shelves_;
  std::atomic<std::uint64_t> system_requests_{0};
  std::atomic<std::size_t> bytes_{0};
};

/// Gives the standard containers memory from the pool: they allocate as they please, and still ask
/// the system for nothing in a steady state.
template <class T>
struct PoolAllocator {
  using value_type = T;

  PoolAllocator() = default;
  template <class U>
  PoolAllocator(const PoolAllocator<U>&) {}

  T* allocate(std::size_t n) {
    return static_cast<T*>(HostPool::instance().acquire(n * sizeof(T)));
  }
  void deallocate(T* p, std::size_t n) noexcept { HostPool::instance().release(p, n * sizeof(T)); }
  friend bool operator==(const PoolAllocator&, const PoolAllocator&) { return true; }
};

template <class T>
using PoolVector = std::vector<T, PoolAllocator<T>>;

}  // namespace deq
