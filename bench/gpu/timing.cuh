// SPDX-License-Identifier: MIT
// How long work of the device takes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <optional>
#include <vector>

#include "names.cuh"

namespace gpu_bench {

class Event {
 public:
  Event() { deq::cuda::check(cudaEventCreate(&event_), "create an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record() {
    deq::cuda::check(cudaEventRecord(event_, deq::cuda::stream()), "record an event");
  }
  /// Waits for this one.
  double since(const Event& start) const {
    deq::cuda::check(cudaEventSynchronize(event_), "wait for an event");
    float milliseconds = 0;
    deq::cuda::check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "time events");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaEvent_t event_ = nullptr;
};

inline double once(const std::function<void()>& work, int calls) {
  Event start, end;
  start.record();
  for (int i = 0; i < calls; ++i) work();
  end.record();
  return end.since(start);
}

/// How many calls a repetition needs to last 5 ms.
inline int calls_for(double seconds) {
  return static_cast<int>(std::clamp(5e-3 / std::max(seconds, 1e-9), 1.0, 100.0));
}

/// The median of one call after a warm-up: of repetitions that go on until `budget` seconds are
/// spent, and are at least five unless that takes four times the budget.
inline double seconds_of(double budget, const std::function<void()>& work) {
  once(work, 2);
  const int calls = calls_for(once(work, 1));
  std::vector<double> times;
  for (double spent = 0;
       times.size() < 3 || spent < budget || (times.size() < 5 && spent < 4 * budget);) {
    const double t = once(work, calls);
    spent += t;
    times.push_back(t / calls);
  }
  std::sort(times.begin(), times.end());
  return (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
}

struct Timing {
  double seconds = 0;
  double recorded = 0;               ///< 1: as a graph, so that the host's share is nothing
  std::optional<double> launches{};  ///< kernels and copies that one call hands to the device
};

/// Of short work, many calls recorded as one graph; at once where that fails.
inline Timing recorded_seconds(double budget, const std::function<void()>& work) {
  once(work, 2);
  const int calls = calls_for(once(work, 1));
  Timing timing;
  try {
    Graph graph([&] {
      for (int i = 0; i < calls; ++i) work();
#ifdef __CUDACC__  // the emulated device has no list of nodes
      cudaStreamCaptureStatus status{};
      cudaGraph_t captured = nullptr;
      std::size_t nodes = 0;
      deq::cuda::check(cudaStreamGetCaptureInfo(deq::cuda::stream(), &status, nullptr, &captured,
                                                nullptr, nullptr, nullptr),
                       "see what is recorded");
      deq::cuda::check(cudaGraphGetNodes(captured, nullptr, &nodes), "count what is recorded");
      timing.launches = static_cast<double>(nodes) / calls;
#endif
    });
    timing.seconds = seconds_of(budget, [&] { graph.launch(); }) / calls;
    timing.recorded = 1;
  } catch (const deq::DeviceError& error) {
    std::fprintf(stderr, "not recorded: %s\n", error.what());
    cudaGetLastError();
    timing.seconds = seconds_of(budget, work);
  }
  return timing;
}

}  // namespace gpu_bench
