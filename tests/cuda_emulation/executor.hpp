// SPDX-License-Identifier: MIT
// Runs the blocks of a grid one after the other, and the threads of a block as fibers.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <vector>

#include "fiber.hpp"
#include "order.hpp"
#include "types.hpp"

namespace deq_emulation {

inline constexpr unsigned warp_size = 32;
inline constexpr std::size_t max_block_threads = 1024;
inline constexpr std::size_t default_shared_bytes = std::size_t{48} << 10;
inline constexpr std::size_t max_shared_bytes = std::size_t{227} << 10;

/// What a warp does at a rendezvous: `perform` gets what each lane brought, null for the lanes that
/// do not take part, and leaves the results there. One object an operation: lanes meet by address.
struct WarpOperation {
  using Arguments = std::array<void*, warp_size>;
  const char* name;
  void (*perform)(const Arguments& arguments);
};

/// A cp.async that has been issued and not landed yet.
struct AsyncCopy {
  void* shared;
  const void* global;
  std::size_t bytes;
  std::size_t valid_bytes;
};

/// Of one thread: the copies in the order of issue, and how many of them there were at each commit.
struct AsyncCopies {
  std::vector<AsyncCopy> issued;
  std::vector<std::size_t> commits;
};

class Executor {
 public:
  // Of the running thread.
  uint3 thread_index{}, block_index{};
  dim3 block_dim, grid_dim;

  /// Runs `body()` as every thread of the grid.
  template <class Body>
  void run(dim3 grid, dim3 block, std::size_t dynamic_bytes, const Body& body) {
    call_ = [](const void* object) { (*static_cast<const Body*>(object))(); };
    body_ = &body;
    grid_dim = grid;
    block_dim = block;
    dynamic_bytes_ = dynamic_bytes;
    ++launches_;
    prepare_threads();
    const std::size_t blocks = std::size_t{grid.x} * grid.y * grid.z;
    std::vector<unsigned>& order = block_order_;
    schedule.arrange(order, blocks);
    for (const unsigned b : order) {
      block_index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
      run_block();
    }
    call_ = nullptr;
  }

  /// Waits for all threads of the block that have not returned.
  void barrier() {
    threads_[current_].state = State::at_barrier;
    ++at_barrier_;
    open_barrier_if_complete();
    pause();
  }

  /// Waits for all lanes in `mask` that have not returned, to perform `operation` together.
  void rendezvous(const WarpOperation& operation, unsigned mask, void* argument) {
    const unsigned lane = current_ % warp_size;
    Thread& self = threads_[current_];
    self.state = State::at_rendezvous;
    self.operation = &operation;
    self.mask = mask;
    self.argument = argument;
    if ((mask >> lane & 1) == 0) give_up("a lane is not in the mask of its own warp operation");
    Warp& warp = warps_[current_ / warp_size];
    warp.arrived |= 1u << lane;
    meet_if_complete(current_ / warp_size, self);
    pause();
  }

  unsigned lane() const { return current_ % warp_size; }
  unsigned live_lanes() const { return warps_[current_ / warp_size].alive; }
  AsyncCopies& async_copies() { return threads_[current_].copies; }
  void* dynamic_shared() const { return dynamic_begin(); }
  bool in_kernel() const { return call_ != nullptr; }
  std::size_t launches() const { return launches_; }

  /// Says what every thread of the block waits for, and aborts.
  [[noreturn]] void give_up(const char* why) const {
    std::fprintf(stderr, "CUDA emulation: %s, in block (%u, %u, %u) of %u threads:\n", why,
                 block_index.x, block_index.y, block_index.z, static_cast<unsigned>(threads()));
    for (std::size_t first = 0; first < threads();) {
      const std::string state = describe(threads_[first]);
      std::size_t last = first;
      while (last + 1 < threads() && describe(threads_[last + 1]) == state) ++last;
      std::fprintf(stderr, "  threads %u to %u %s\n", static_cast<unsigned>(first),
                   static_cast<unsigned>(last), state.c_str());
      first = last + 1;
    }
    std::abort();
  }

 private:
  enum class State { not_started, runnable, at_barrier, at_rendezvous, returned };

  struct Thread {
    Fiber* fiber = nullptr;
    State state = State::not_started;
    uint3 index{};
    // At a rendezvous.
    const WarpOperation* operation = nullptr;
    unsigned mask = 0;
    void* argument = nullptr;
    AsyncCopies copies;
  };
  struct Warp {
    unsigned alive = 0;
    unsigned arrived = 0;            // Lanes at a rendezvous.
    unsigned size = 0;               // of `order`
    std::array<unsigned, 32> order;  // The threads of the warp, in the order to run.
  };

  std::size_t threads() const { return thread_order_.size(); }

  void prepare_threads() {
    const std::size_t n = std::size_t{block_dim.x} * block_dim.y * block_dim.z;
    arrange_threads(n);
    for (unsigned t = 0; t < n; ++t)
      threads_[t].index = {t % block_dim.x, t / block_dim.x % block_dim.y,
                           t / block_dim.x / block_dim.y};
  }

  void arrange_threads(std::size_t n) {
    schedule.arrange(thread_order_, n);
    for (std::size_t w = 0; w * warp_size < n; ++w) warps_[w].size = 0;
    for (const unsigned t : thread_order_) {
      Warp& warp = warps_[t / warp_size];
      warp.order[warp.size++] = t;
    }
  }

  void run_block() {
    const std::size_t n = threads();
    if (schedule.order() == Order::shuffled) arrange_threads(n);
    for (std::size_t t = 0; t < n; ++t) threads_[t].state = State::not_started;
    for (std::size_t w = 0; w * warp_size < n; ++w) {
      warps_[w].alive = ~0u >> (warp_size - warps_[w].size);
      warps_[w].arrived = 0;
    }
    if (dynamic_bytes_ > 0) std::memset(dynamic_begin(), 0xff, dynamic_bytes_);
    started_ = 0;
    alive_ = n;
    at_barrier_ = 0;
    switch_to(main_, idle_fiber());
  }

  /// What every fiber does: takes threads until another one should go on first, then idles.
  [[noreturn]] static void run_threads(Fiber& self);

  /// The running thread waits for others, which run until they have set it free.
  void pause() {
    Fiber& self = *threads_[current_].fiber;
    if (!ready_.empty()) {
      const unsigned waiting = current_;
      Fiber& next = take_ready();
      if (current_ != waiting) switch_to(self, next);
    } else if (started_ < threads()) {
      switch_to(self, idle_fiber());
    } else {
      give_up("deadlock");
    }
  }

  Fiber& take_ready() {
    current_ = ready_.back();
    ready_.pop_back();
    thread_index = threads_[current_].index;
    return *threads_[current_].fiber;
  }

  Fiber& idle_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>(&run_threads, fibers_.size()));
      return *fibers_.back();
    }
    Fiber& fiber = *idle_.back();
    idle_.pop_back();
    return fiber;
  }

  void start_thread(Fiber& fiber) {
    current_ = thread_order_[started_++];
    Thread& thread = threads_[current_];
    thread.fiber = &fiber;
    thread.state = State::runnable;
    thread_index = thread.index;
  }

  void end_thread() {
    Thread& thread = threads_[current_];
    thread.state = State::returned;
    thread.copies.issued.clear();
    thread.copies.commits.clear();
    --alive_;
    const unsigned w = current_ / warp_size;
    Warp& warp = warps_[w];
    warp.alive &= ~(1u << (current_ % warp_size));
    for (unsigned lanes = warp.arrived; lanes != 0; lanes &= lanes - 1) {
      const Thread& waiting =
          threads_[w * warp_size + static_cast<unsigned>(std::countr_zero(lanes))];
      if (waiting.state == State::at_rendezvous) meet_if_complete(w, waiting);
    }
    open_barrier_if_complete();
  }

  void open_barrier_if_complete() {
    if (alive_ == 0 || at_barrier_ < alive_) return;
    at_barrier_ = 0;
    if (schedule.order() == Order::shuffled) arrange_threads(threads());
    for (std::size_t i = threads(); i-- > 0;)
      if (threads_[thread_order_[i]].state == State::at_barrier) make_ready(thread_order_[i]);
  }

  /// Lanes meet if all that live of one's mask wait with this mask for the same operation.
  void meet_if_complete(unsigned w, const Thread& one) {
    Warp& warp = warps_[w];
    const WarpOperation& operation = *one.operation;
    const unsigned mask = one.mask, lanes = mask & warp.alive;
    if ((warp.arrived & lanes) != lanes) return;
    WarpOperation::Arguments arguments{};
    for (unsigned rest = lanes; rest != 0; rest &= rest - 1) {
      const auto lane = static_cast<unsigned>(std::countr_zero(rest));
      const Thread& thread = threads_[w * warp_size + lane];
      if (thread.mask != mask || thread.operation != &operation) return;
      arguments[lane] = thread.argument;
    }
    operation.perform(arguments);
    warp.arrived &= ~lanes;
    for (unsigned i = warp.size; i-- > 0;)
      if (lanes >> (warp.order[i] % warp_size) & 1) make_ready(warp.order[i]);
  }

  /// The last to become ready goes on first: a warp runs as far as it can before another one does.
  void make_ready(unsigned t) {
    threads_[t].state = State::runnable;
    ready_.push_back(t);
  }

  /// Ends where an unmapped page begins, so that a kernel cannot use more than it asked for.
  char* dynamic_begin() const {
    static char* const end = [] {
      const std::size_t bytes = std::size_t{256} << 10;
      void* memory = mmap(nullptr, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, bytes, PROT_READ | PROT_WRITE) != 0)
        fail("no memory for shared memory");
      return static_cast<char*>(memory) + bytes;
    }();
    return end - (dynamic_bytes_ + 127) / 128 * 128;
  }

  static std::string describe(const Thread& thread) {
    switch (thread.state) {
      case State::not_started: return "have not started";
      case State::runnable: return "can run";
      case State::at_barrier: return "wait at __syncthreads";
      case State::returned: return "have returned";
      case State::at_rendezvous: break;
    }
    char text[96];
    std::snprintf(text, sizeof text, "wait in %s with the mask %08x", thread.operation->name,
                  thread.mask);
    return text;
  }

  void (*call_)(const void*) = nullptr;
  const void* body_ = nullptr;
  std::size_t dynamic_bytes_ = 0;
  std::size_t launches_ = 0;
  std::vector<unsigned> block_order_, thread_order_;

  // Of the running block.
  unsigned current_ = 0;
  std::size_t started_ = 0, alive_ = 0, at_barrier_ = 0;
  std::vector<unsigned> ready_;  // Taken from the back.
  std::vector<Thread> threads_ = std::vector<Thread>(max_block_threads);
  std::array<Warp, max_block_threads / warp_size> warps_;

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  Continuation main_;
};

inline Executor executor;

inline void Executor::run_threads(Fiber& self) {
  Executor& e = executor;
  for (;;) {
    do {
      e.start_thread(self);
      e.call_(e.body_);
      e.end_thread();
    } while (e.ready_.empty() && e.started_ < e.threads());
    e.idle_.push_back(&self);
    if (!e.ready_.empty())
      switch_to(self, e.take_ready());
    else if (e.alive_ == 0)
      switch_to(self, e.main_);
    else
      e.give_up("deadlock");
  }
}

/// The dynamic shared memory of the running block: 128-byte aligned, and NaN at first.
inline void* dynamic_shared() { return executor.dynamic_shared(); }

/// Kernels run so far, those of graphs included.
inline std::size_t launches() { return executor.launches(); }

}  // namespace deq_emulation
