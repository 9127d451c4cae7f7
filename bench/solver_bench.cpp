// SPDX-License-Identifier: MIT
// How fast is a whole solve, by method, dimension, batch and memory? On the dense map
// z = tanh(W z + x), and on a map that costs next to nothing, where the time is the solver's own.
// "share_of_f" is the part of the time that the evaluations of f alone would need, "own_us" what is
// left of an iteration without them, for the whole batch, in microseconds.

#include <string>
#include <type_traits>

#include <benchmark/benchmark.h>

#include <deq/backend/everybody.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>

#include "cheap_map.hpp"
#include "dense_tanh.hpp"
#include "run_benchmarks.hpp"
#include "stream.hpp"

namespace {

using deq::Index;
using B = deq::Cpu<float>;

constexpr int iterations = 30;

/// Seconds of one evaluation of f for the whole batch, the best of several.
template <class Map>
double seconds_of_f(Map& f, Index dim, Index batch) {
  deq::Array<B> z, out;
  const auto zb = z.batch(dim, batch), ob = out.batch(dim, batch);
  B::fill(zb.data, zb.size(), 0.1f);
  deq::Everybody<B> everybody;
  const deq::Samples all = everybody(batch);
  double best = 1e9;
  for (int repeat = 0; repeat < 20; ++repeat) {
    const double start = bench::now();
    f.evaluate(all, zb, ob);
    best = std::min(best, bench::now() - start);
  }
  return best;
}

template <class Map, class Solver>
void run(benchmark::State& state, Map& f, Solver solver) {
  const Index dim = state.range(0), batch = state.range(1);
  if constexpr (requires { solver.memory; }) solver.memory = state.range(2);
  solver.stopping = {.max_iterations = iterations,
                     .relative_tolerance = 0,
                     .divergence_factor = 1e30,
                     .stall_window = 0};
  typename Solver::template Workspace<B> ws;
  deq::Array<B> start;
  const auto z = start.batch(dim, batch);
  if constexpr (requires { f.begin(); }) f.begin();
  const double f_seconds = seconds_of_f(f, dim, batch);
  const auto once = [&] {
    B::fill(z.data, z.size(), 0);
    if constexpr (requires { f.begin(); }) f.begin();
    solver.template solve<deq::KeepInverse::no>(f, z, ws, deq::NoObserver{});
  };
  once();
  const auto before = deq::HostPool::instance().system_requests();
  const double begin = bench::now();
  for (auto _ : state) once();
  const double seconds = (bench::now() - begin) / static_cast<double>(state.iterations());
  const deq::SampleReport& report = ws.report.samples[0];
  state.SetItemsProcessed(state.iterations() * batch);
  state.counters["steps"] = report.iterations;
  state.counters["evaluations"] = report.evaluations;
  state.counters["allocations"] =
      static_cast<double>(deq::HostPool::instance().system_requests() - before);
  state.counters["share_of_f"] = f_seconds * report.evaluations / seconds;
  state.counters["own_us"] = 1e6 * (seconds - f_seconds * report.evaluations) / report.iterations;
}

template <class Solver>
void dense(benchmark::State& state, Solver solver) {
  bench::DenseTanh<float> f(state.range(0), state.range(1));
  run(state, f, solver);
}
template <class Solver>
void cheap(benchmark::State& state, Solver solver) {
  bench::CheapMap<float> f(state.range(0));
  run(state, f, solver);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"D", "batch", "memory"})->UseRealTime()->Unit(benchmark::kMillisecond);
  for (const Index batch : {1, 32, 128}) b->Args({512, batch, 30});
  b->Args({64, 128, 30})->Args({512, 128, 10})->Args({2048, 32, 30});
}
/// Cost against the batch and against the dimension, from 1 to 1024.
void linearity(benchmark::internal::Benchmark* b) {
  b->ArgNames({"D", "batch", "memory"})->UseRealTime()->Unit(benchmark::kMicrosecond);
  for (Index batch = 1; batch <= 1024; batch *= 4) b->Args({64, batch, 30});
  for (Index dim = 1; dim <= 1024; dim *= 4) b->Args({dim, 64, 30});
  for (const Index memory : {5, 10, 20, 30}) b->Args({512, 128, memory});
  b->Args({65536, 4, 30});
}

BENCHMARK_CAPTURE(dense, broyden_pairs, deq::Broyden<>{})->Apply(shapes);
BENCHMARK_CAPTURE(dense, broyden_steps, deq::Broyden<deq::StepsOnly>{})->Apply(shapes);
BENCHMARK_CAPTURE(dense, anderson, deq::Anderson{})->Apply(shapes);
BENCHMARK_CAPTURE(dense, fixed_point, deq::FixedPoint{})->Apply(shapes);
BENCHMARK_CAPTURE(cheap, broyden_pairs, deq::Broyden<>{})->Apply(linearity);
BENCHMARK_CAPTURE(cheap, broyden_steps, deq::Broyden<deq::StepsOnly>{})->Apply(linearity);

}  // namespace

int main(int argc, char** argv) { return bench::run_benchmarks(argc, argv); }
