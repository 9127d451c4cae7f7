// SPDX-License-Identifier: MIT
#pragma once

#include <new>
#include <vector>

#include <deq/core/block_pool.hpp>

namespace deq {

/// The heap, in blocks that begin with a cache line.
struct Heap {
  static constexpr std::align_val_t alignment{64};
  static void* allocate(std::size_t bytes) { return ::operator new(bytes, alignment); }
  static void deallocate(void* block) noexcept { ::operator delete(block, alignment); }
};

/// The pool of all host memory.
using HostPool = BlockPool<Heap>;

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
