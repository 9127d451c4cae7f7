// SPDX-License-Identifier: MIT
// One loop over independent pieces of work, shared by a fixed team of threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/core/types.hpp>

#ifdef DEQ_WITH_OPENMP
#include <omp.h>
#endif

namespace deq {

namespace detail {

/// True on a thread that is inside a parallel_for: a nested loop then runs where it is.
inline thread_local bool inside_parallel = false;

/// Runs body(i) and keeps the first exception, for the calling thread to rethrow.
class FirstError {
 public:
  template <class Body>
  void guard(Body&& body) noexcept {
    try {
      body();
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr error_;
};

/// The team; the caller works as its thread 0. Where the system gives no more threads it is smaller
/// than asked for. A thread that has nothing to do looks out for work for a while before it sleeps:
/// to wake it costs ten times what a loop over a small image takes.
class ThreadTeam {
 public:
  /// Must not throw.
  using Job = void (*)(void* context, Index i);

  explicit ThreadTeam(int threads) : shares_(static_cast<std::size_t>(threads)) {
    workers_.reserve(shares_.size() - 1);
    try {
      for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
    } catch (const std::exception&) {  // no memory, or a limit of the system
    }
  }
  ~ThreadTeam() {
    job_ = nullptr;
    call();
    for (std::thread& worker : workers_) worker.join();
  }
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int asked_for() const { return static_cast<int>(shares_.size()); }
  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Runs job(context, i) for i in [0, n); false if the team is at work for another thread, and
  /// then nothing has run. No thread waits for the team: it may hold what the team's work
  /// waits for.
  bool run(Index n, Job job, void* context) {
    const std::unique_lock one_loop_at_a_time(loop_, std::try_to_lock);
    if (!one_loop_at_a_time) return false;
    job_ = job;
    context_ = context;
    n_ = n;
    for (Share& share : shares_) share.taken = 0;
    running_ = size() - 1;
    call();
    take_part(0);
    for (int left = running_; left != 0; left = running_) wait_for_change(running_, left);
    return true;
  }

 private:
  /// How many of its indices t, t + size(), t + 2 size(), ... are taken from the share of thread t,
  /// which begins with them: in the same loop the next time it meets the same data, in a cache of
  /// its own. All threads together go through the indices about in order, so whoever has to wait
  /// for the work of a lower index does not wait long. Alone on their cache line, since others ask
  /// for them as well.
  struct alignas(64) Share {
    std::atomic<Index> taken = 0;
  };

  void call() {
    ++loops_;
    loops_.notify_all();
  }
  void work(int thread) {
    for (unsigned seen = 0;; ++seen) {
      wait_for_change(loops_, seen);
      if (!job_) return;
      take_part(thread);
      if (--running_ == 0) running_.notify_one();
    }
  }
  /// The thread's own share, then what is left of the others'.
  void take_part(int thread) {
    inside_parallel = true;
    for (int k = 0; k < size(); ++k) {
      const Index of = (thread + k) % size();
      Share& share = shares_[static_cast<std::size_t>(of)];
      const auto next = [&] { return of + size() * share.taken++; };
      for (Index i = next(); i < n_; i = next()) job_(context_, i);
    }
    inside_parallel = false;
  }
  template <class T>
  static void wait_for_change(const std::atomic<T>& value, T old) {
    using Clock = std::chrono::steady_clock;
    for (int look = 0; look < 25; ++look) {
      const auto end = Clock::now() + std::chrono::microseconds(2);
      while (Clock::now() < end)
        if (value != old) return;
      std::this_thread::yield();  // on a busy machine those waited for may need this processor
    }
    value.wait(old);
  }

  std::mutex loop_;
  Job job_ = nullptr;
  void* context_ = nullptr;
  Index n_ = 0;
  std::vector<Share> shares_;        ///< one a thread that was asked for
  std::atomic<unsigned> loops_ = 0;  ///< that were begun
  std::atomic<int> running_ = 0;     ///< workers that are not done with this one
  std::vector<std::thread> workers_;
};

struct Team {
  std::mutex mutex;
  std::unique_ptr<ThreadTeam> team;
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));

  static Team& instance() {
    static Team team;
    return team;
  }
  ThreadTeam& get() {
    const std::lock_guard lock(mutex);
    if (!team || team->asked_for() != threads) {
      team.reset();
      team = std::make_unique<ThreadTeam>(threads);
    }
    return *team;
  }
};

}  // namespace detail

/// Threads that a parallel_for uses, or fewer if the system does not give them; all hardware
/// threads unless set.
inline int num_threads() { return detail::Team::instance().threads; }

/// Sets the number of threads, >= 1. Not while a parallel_for is running. No result depends on it.
inline void set_num_threads(int threads) {
  require(threads >= 1, "set_num_threads: threads must be >= 1, got ", threads);
  detail::Team::instance().threads = threads;
}

/// Calls body(i) for i in [0, n), in any order and on any thread of the team; each begins with a
/// share of its own and then takes from the others', so uneven pieces balance. The first exception
/// is rethrown here. Nested loops run on the calling thread, and so does a loop while the team is
/// at work for another thread of the program. `serial` (a guess that the work is too small to
/// share) keeps it there as well.
template <class Body>
void parallel_for(Index n, Body&& body, bool serial = false) {
  const auto alone = [&] {
    for (Index i = 0; i < n; ++i) body(i);
  };
  if (serial || n <= 1 || detail::inside_parallel || num_threads() == 1) return alone();
  detail::FirstError error;
#ifdef DEQ_WITH_OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(num_threads())
  for (Index i = 0; i < n; ++i) {
    detail::inside_parallel = true;
    error.guard([&] { body(i); });
    detail::inside_parallel = false;
  }
#else
  struct Loop {
    Body& body;
    detail::FirstError& error;
  } loop{body, error};
  const bool done = detail::Team::instance().get().run(
      n,
      [](void* context, Index i) {
        const Loop& l = *static_cast<Loop*>(context);
        l.error.guard([&] { l.body(i); });
      },
      &loop);
  if (!done) return alone();
#endif
  error.rethrow();
}

}  // namespace deq
