// SPDX-License-Identifier: MIT
// How fast is a whole solve of the dense map z = tanh(W z + x), by method, dimension and batch? The
// counter "share_of_f" is the part of the time that the evaluations of f alone would need.

#include <chrono>
#include <numeric>

#include <benchmark/benchmark.h>

#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>

#include "dense_tanh.hpp"

namespace {

using deq::Index;
using B = deq::Cpu<float>;

constexpr int iterations = 30;

/// Seconds of one evaluation of f for the whole batch, the best of several.
double seconds_of_f(bench::DenseTanh<float>& f, Index dim, Index batch) {
  deq::Array<B> z, out;
  const auto zb = z.batch(dim, batch), ob = out.batch(dim, batch);
  B::fill(zb.data, zb.size(), 0.1f);
  std::vector<Index> ids(static_cast<std::size_t>(batch));
  std::iota(ids.begin(), ids.end(), Index{0});
  double best = 1e9;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    f.evaluate({ids.data(), batch}, zb, ob);
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

template <class Solver>
void solve(benchmark::State& state, Solver solver) {
  const Index dim = state.range(0), batch = state.range(1);
  bench::DenseTanh<float> f(dim, batch);
  solver.stopping = {.max_iterations = iterations, .relative_tolerance = 0, .stall_window = 0};
  typename Solver::template Workspace<B> ws;
  deq::Array<B> start;
  const auto z = start.batch(dim, batch);
  const double f_seconds = seconds_of_f(f, dim, batch);
  std::uint64_t before = 0;
  for (auto _ : state) {
    B::fill(z.data, z.size(), 0);
    solver.template solve<deq::KeepInverse::no>(f, z, ws, deq::NoObserver{});
    if (before == 0) before = deq::HostPool::instance().system_requests();
  }
  const auto solves = static_cast<double>(state.iterations());
  state.SetItemsProcessed(state.iterations() * batch);
  state.counters["f_evaluations"] = ws.report.samples[0].evaluations;
  state.counters["allocations"] =
      static_cast<double>(deq::HostPool::instance().system_requests() - before);
  state.counters["share_of_f"] = benchmark::Counter(
      solves * f_seconds * ws.report.samples[0].evaluations, benchmark::Counter::kIsRate);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"D", "batch"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const Index batch : {1, 32, 128}) b->Args({512, batch});
}

BENCHMARK_CAPTURE(solve, broyden_pairs, deq::Broyden<>{.memory = 30})->Apply(shapes);
BENCHMARK_CAPTURE(solve, broyden_steps, deq::Broyden<deq::StepsOnly>{.memory = 30})->Apply(shapes);
BENCHMARK_CAPTURE(solve, anderson, deq::Anderson{})->Apply(shapes);
BENCHMARK_CAPTURE(solve, fixed_point, deq::FixedPoint{})->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
