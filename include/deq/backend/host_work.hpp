// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include <deq/core/types.hpp>

namespace deq {

/// How work is given (see BackendWork) to a backend that does it at once, in memory of the host:
/// something to derive from.
struct HostWork {
  static constexpr bool whole_batches = false, concurrent = false;

  /// Its sets have no holes.
  struct Rows {
    explicit Rows(Samples) {}
  };
  /// It records nothing.
  struct Replay {
    static constexpr bool records = false;

    template <class Work>
    void operator()(Work&& work) {
      work();
    }
  };

  /// The one thread that works on a sample, as a team.
  struct OneThread {
    static constexpr int rank = 0;
    template <class Body>
    void for_each(Index n, Body&& body) const {
      for (Index i = 0; i < n; ++i) body(i);
    }
    void sync() const {}
  };
  template <class Function>
  static void for_each_team(Samples a, Function&& function) {
    for (Index j = 0; j < a.count; ++j) function(a[j], OneThread{});
  }

  static bool empty(Samples a) { return a.empty(); }
  template <class Work>
  static void repeat(const Samples& a, Work&& work) {
    while (!a.empty()) work();
  }
  struct Lanes {};
  template <class Work>
  static void side_by_side(Index n, Work&& work, const Lanes& = {}) {
    for (Index i = 0; i < n; ++i) work(i);
  }
  template <class Work>
  static void when_done(Work&& work) {
    work();
  }
  template <class T, class Work>
  static void when_downloaded(const T* from, Index n, Work&& work) {
    work(std::span<const T>(from, static_cast<std::size_t>(n)));
  }
  static constexpr bool recording() { return false; }
};

}  // namespace deq
