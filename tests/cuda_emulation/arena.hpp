// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sys/mman.h>

#include "fiber.hpp"

namespace deq_emulation {

/// Device memory: one range of addresses that only kernels, copies and fills can reach, each of
/// which holds an Access. Blocks are NaN when they are handed out, and again once given back; a
/// write behind the end of a block is noticed at the latest when it is given back.
class Arena {
 public:
  static constexpr std::size_t capacity = std::size_t{8} << 30;
  static constexpr std::size_t alignment = 256;

  /// Opens the memory for the lifetime of the object.
  class Access {
   public:
    explicit Access(Arena& arena) : arena_(arena), bytes_(arena.used_) {
      if (arena_.depth_++ == 0 && arena_.protected_) arena_.protect(bytes_, PROT_READ | PROT_WRITE);
    }
    ~Access() {
      if (--arena_.depth_ == 0 && arena_.protected_) arena_.protect(bytes_, PROT_NONE);
    }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    Arena& arena_;
    std::size_t bytes_;
  };

  /// Null if there is not that much left.
  void* acquire(std::size_t bytes) {
    const std::size_t size = padded(bytes);
    if (bytes > capacity) return nullptr;
    std::size_t begin = 0;  // The first gap that is large enough.
    auto next = live_.begin();
    for (; next != live_.end() && next->first - begin < size; ++next)
      begin = next->first + padded(next->second);
    if (next == live_.end() && capacity - begin < size) return nullptr;
    live_.emplace_hint(next, begin, bytes);
    live_bytes_ += bytes;
    update_used();
    const Access access(*this);
    std::memset(base() + begin, 0xff, size);
    return base() + begin;
  }

  /// Whether `block` was a block.
  bool release(void* block) {
    const auto found = live_.find(offset(block));
    if (found == live_.end()) return false;
    const auto [begin, bytes] = *found;
    {
      const Access access(*this);
      for (std::size_t i = bytes; i < padded(bytes); ++i)
        if (base()[begin + i] != static_cast<char>(0xff))
          fail("a kernel has written behind the end of a block of device memory");
      std::memset(base() + begin, 0xff, padded(bytes));
    }
    live_bytes_ -= bytes;
    live_.erase(found);
    update_used();
    return true;
  }

  bool contains(const void* p) const { return offset(p) < capacity; }

  /// Whether all of [p, p + bytes) is in one block.
  bool is_live(const void* p, std::size_t bytes) const {
    const std::size_t begin = offset(p);
    auto next = live_.upper_bound(begin);
    if (begin >= capacity || next == live_.begin()) return false;
    --next;
    return begin - next->first <= next->second && bytes <= next->second - (begin - next->first);
  }

  void set_protection(bool on) {
    if (protected_ == on) return;
    protected_ = on;
    protect(capacity, on ? PROT_NONE : PROT_READ | PROT_WRITE);
  }

  std::size_t live_blocks() const { return live_.size(); }
  std::size_t live_bytes() const { return live_bytes_; }

 private:
  /// With at least one unit between a block and the next one.
  static std::size_t padded(std::size_t bytes) {
    return (bytes + alignment - 1) / alignment * alignment + alignment;
  }

  char* base() const {
    static char* const memory = [] {
      void* begin =
          mmap(nullptr, capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (begin == MAP_FAILED) fail("no addresses for device memory");
      return static_cast<char*>(begin);
    }();
    return memory;
  }
  std::size_t offset(const void* p) const {
    return reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(base());
  }
  void update_used() {
    used_ = live_.empty() ? 0 : live_.rbegin()->first + padded(live_.rbegin()->second);
  }
  void protect(std::size_t bytes, int how) const {
    if (bytes > 0 && mprotect(base(), bytes, how) != 0) fail("mprotect of device memory failed");
  }

  std::map<std::size_t, std::size_t> live_;  // Offset to bytes.
  std::size_t live_bytes_ = 0;
  std::size_t used_ = 0;  // Bytes up to the end of the last block.
  bool protected_ = true;
  int depth_ = 0;
};

inline Arena arena;

/// Whether host code that touches device memory crashes; true at first.
inline void set_protection(bool on) { arena.set_protection(on); }
inline std::size_t live_blocks() { return arena.live_blocks(); }
inline std::size_t live_bytes() { return arena.live_bytes(); }

}  // namespace deq_emulation
