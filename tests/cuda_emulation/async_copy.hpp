// SPDX-License-Identifier: MIT
// cp.async: copies from global to shared memory that land later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "executor.hpp"

namespace deq_emulation {

/// When a copy lands. CUDA promises no more than "by the wait that covers it". At the wait shows
/// reads that lack a wait or a barrier; at the issue shows copies that land where threads still
/// read what was there before.
enum class Landing { at_wait, at_issue };
inline Landing landing = Landing::at_wait;
inline void set_landing(Landing when) { landing = when; }

inline void land(const AsyncCopy& copy) {
  if (copy.valid_bytes > 0) std::memcpy(copy.shared, copy.global, copy.valid_bytes);
  std::memset(static_cast<char*>(copy.shared) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
}

/// cp.async: the calling thread orders a copy of 4, 8 or 16 bytes, of which the first valid_bytes
/// are read and the others are zero.
inline void copy_async(void* shared, const void* global, int bytes, int valid_bytes) {
  const auto misaligned = [bytes](const void* address) {
    return reinterpret_cast<std::uintptr_t>(address) % static_cast<unsigned>(bytes) != 0;
  };
  if (bytes != 4 && bytes != 8 && bytes != 16) executor.give_up("cp.async of an invalid size");
  if (valid_bytes < 0 || valid_bytes > bytes) executor.give_up("cp.async with an invalid source");
  if (misaligned(shared) || misaligned(global)) executor.give_up("cp.async is not aligned");
  const AsyncCopy copy{shared, global, static_cast<std::size_t>(bytes),
                       static_cast<std::size_t>(valid_bytes)};
  if (landing == Landing::at_issue)
    land(copy);
  else
    executor.async_copies().issued.push_back(copy);
}

/// cp.async.commit_group: what the thread has issued since the last commit is a group.
inline void copy_async_commit() {
  AsyncCopies& copies = executor.async_copies();
  copies.commits.push_back(copies.issued.size());
}

/// cp.async.wait_group: all groups of the thread but the last `groups_left` have landed.
inline void copy_async_wait(int groups_left) {
  AsyncCopies& copies = executor.async_copies();
  const auto left = static_cast<std::size_t>(groups_left);
  if (copies.commits.size() <= left) return;
  const auto groups = static_cast<std::ptrdiff_t>(copies.commits.size() - left);
  const std::size_t landed = copies.commits[static_cast<std::size_t>(groups - 1)];
  for (std::size_t i = 0; i < landed; ++i) land(copies.issued[i]);
  copies.issued.erase(copies.issued.begin(),
                      copies.issued.begin() + static_cast<std::ptrdiff_t>(landed));
  copies.commits.erase(copies.commits.begin(), copies.commits.begin() + groups);
  for (std::size_t& commit : copies.commits) commit -= landed;
}

}  // namespace deq_emulation
