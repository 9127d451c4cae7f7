// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <mutex>

#include <deq/core/types.hpp>

namespace deq::detail {

/// Lets pieces of work that finish in any order act one after the other, in the order of their
/// index: a sum over them has the same bits for any number of threads.
class InOrder {
 public:
  /// One piece's turn. It passes on when the piece has acted, or has failed before it could.
  class Turn {
   public:
    Turn(InOrder& order, Index index) : order_(order), index_(index) {}
    ~Turn() {
      wait();
      const std::lock_guard lock(order_.mutex_);
      ++order_.next_;
      order_.moved_.notify_all();
    }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    void wait() {
      std::unique_lock lock(order_.mutex_);
      order_.moved_.wait(lock, [this] { return order_.next_ == index_; });
    }

   private:
    InOrder& order_;
    Index index_;
  };

 private:
  std::mutex mutex_;
  std::condition_variable moved_;
  Index next_ = 0;
};

}  // namespace deq::detail
