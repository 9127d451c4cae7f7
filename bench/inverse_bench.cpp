// SPDX-License-Identifier: MIT
// How fast is the algebra of Broyden's inverse, by storage, dimension, batch and memory, and how
// far from the floor of the memory is it? bytes_per_second counts each stored vector once a pass;
// "of_stream" is its ratio to a triad over 192 MB in the same program, above 1 where the basis
// comes from a cache.

#include <cstdint>
#include <numeric>
#include <vector>

#include <benchmark/benchmark.h>

#include <deq/backend/everybody.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/inverse/broyden_steps.hpp>
#include <deq/inverse/low_rank_pairs.hpp>

#include "cheap_map.hpp"
#include "run_benchmarks.hpp"
#include "stream.hpp"

namespace {

using deq::Index;
using B = deq::Cpu<float>;
using View = deq::BatchView<float>;

/// Numbers that one iteration reads and writes for a sample with n vectors: the passes over the
/// basis, and those over single vectors (residual, update, step).
constexpr double traffic(const deq::BroydenSteps<B>&, double n, double dim) {
  return (2 * n + 6) * dim;
}
constexpr double traffic(const deq::LowRankPairs<B>&, double n, double dim) {
  return (4 * n + 21) * dim;
}

/// The path of one solve of `steps` steps, to be walked again without f.
template <class H>
class Path {
 public:
  Path(Index dim, Index batch, Index steps) : dim_(dim), batch_(batch), steps_(steps) {
    h.prepare(dim, steps, batch, ws_);
    norms_.resize(2 * batch);
    length_.resize(batch);
    skipped_.resize(batch);
    improved_.resize(batch);
    ids_.resize(batch);
    B::fill(length_.data(), batch, 1);
    std::fill_n(improved_.data(), batch, false);  // is not part of what is counted
    f_.resize((steps + 1) * dim * batch);
    bench::CheapMap<float> map(dim);
    start();
    for (Index k = 0; k <= steps; ++k) {
      map.evaluate(everybody(), z(), f(k));
      between(k);
    }
  }

  deq::Samples everybody() { return everybody_(batch_); }
  View z() { return z_.batch(dim_, batch_); }
  View g() { return g_.batch(dim_, batch_); }
  View d() { return d_.batch(dim_, batch_); }
  View f(Index k) { return {f_.data() + k * dim_ * batch_, dim_, batch_}; }

  void start() {
    B::fill(z().data, z().size(), 0);
    h.reset(everybody());
  }
  /// All that lies between evaluation k of f and the next one.
  void between(Index k) {
    const deq::Samples all = everybody();
    deq::BroydenIteration<float> iteration{
        .z = z(),
        .g = g(),
        .d = d(),
        .best = z(),
        .improved = improved_.data(),
        .moves = true,
        .g_squared = norms_.data(),
        .f_squared = norms_.data() + batch_,
        .length = length_.data(),
        .when_full = deq::WhenFull::freeze,
        .skipped = skipped_.data(),
    };
    const PlanAll plan{h.plan(iteration, ws_)};
    B::in_blocks(batch_, dim_ * (k + 4), [&](Index first, Index n) {
      const deq::Samples a{all.id + first, n};
      deq::BroydenIteration<float> it = iteration;
      it.f = f(k).columns(first, n);
      it.ids = ids_.data() + first;
      h.residual(a, it, plan, ws_);
      const deq::detail::AnySampleWork nothing;
      if (k == 0)
        h.begin(a, it, nothing, ws_);
      else
        h.advance(a, it, nothing, ws_);
    });
  }
  double bytes() const {
    double numbers = 0;
    for (Index k = 0; k <= steps_; ++k)
      numbers += traffic(h, static_cast<double>(k), static_cast<double>(dim_));
    return numbers * static_cast<double>(batch_) * sizeof(float);
  }

  H h;

 private:
  struct PlanAll {
    typename H::Plan plan;
    template <class Team>
    void operator()(Index s, const Team& team) const {
      plan(s, true, team);
    }
  };

  Index dim_, batch_, steps_;
  deq::Everybody<B> everybody_;
  deq::Array<B> z_, g_, d_, f_, norms_, length_;
  deq::Array<B, bool> skipped_, improved_;
  deq::Array<B, Index> ids_;
  typename H::Workspace ws_;
};

void report(benchmark::State& state, double bytes, double seconds, std::uint64_t requests) {
  state.SetBytesProcessed(
      static_cast<std::int64_t>(bytes * static_cast<double>(state.iterations())));
  state.counters["of_stream"] =
      bytes * static_cast<double>(state.iterations()) / seconds / bench::stream_bandwidth();
  state.counters["allocations"] =
      static_cast<double>(deq::HostPool::instance().system_requests() - requests);
}

/// `memory` updates from an empty inverse to a full one; the time is that of one iteration.
template <class H>
void advance(benchmark::State& state) {
  const Index dim = state.range(0), batch = state.range(1), memory = state.range(2);
  Path<H> path(dim, batch, memory);
  const auto requests = deq::HostPool::instance().system_requests();
  double total = 0;
  for (auto _ : state) {
    path.start();
    const double start = bench::now();
    for (Index k = 0; k <= memory; ++k) path.between(k);
    const double seconds = bench::now() - start;
    state.SetIterationTime(seconds / static_cast<double>(memory + 1));
    total += seconds / static_cast<double>(memory + 1);
  }
  report(state, path.bytes() / static_cast<double>(memory + 1), total, requests);
}

/// y = H x or H^T x with a full memory.
template <class H, bool transposed>
void product(benchmark::State& state) {
  const Index dim = state.range(0), batch = state.range(1), memory = state.range(2);
  Path<H> path(dim, batch, memory);
  deq::Array<B> scratch;
  const View x = path.g(), y = path.d();
  const auto once = [&] {
    if (transposed)
      path.h.apply_transpose(path.everybody(), x, y, scratch);
    else
      path.h.apply(path.everybody(), x, y, scratch);
  };
  once();
  const auto requests = deq::HostPool::instance().system_requests();
  double total = 0;
  for (auto _ : state) {
    const double start = bench::now();
    once();
    const double seconds = bench::now() - start;
    state.SetIterationTime(seconds);
    total += seconds;
  }
  const auto n = static_cast<double>(memory);
  report(state, (2 * n + 4) * static_cast<double>(dim * batch) * sizeof(float), total, requests);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"D", "batch", "memory"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const Index batch : {1, 32, 128}) b->Args({512, batch, 30});
  for (const Index memory : {5, 10, 20}) b->Args({512, 128, memory});
  b->Args({4096, 32, 30})->Args({65536, 4, 30})->Args({262144, 2, 30});
}

BENCHMARK_TEMPLATE(advance, deq::BroydenSteps<B>)->Apply(shapes);
BENCHMARK_TEMPLATE(advance, deq::LowRankPairs<B>)->Apply(shapes);
BENCHMARK_TEMPLATE(product, deq::BroydenSteps<B>, false)->Apply(shapes);
BENCHMARK_TEMPLATE(product, deq::BroydenSteps<B>, true)->Apply(shapes);
BENCHMARK_TEMPLATE(product, deq::LowRankPairs<B>, false)->Apply(shapes);
BENCHMARK_TEMPLATE(product, deq::LowRankPairs<B>, true)->Apply(shapes);

}  // namespace

int main(int argc, char** argv) {
  benchmark::AddCustomContext("triad of 192 MB, GB/s",
                              std::to_string(bench::stream_bandwidth() / 1e9));
  benchmark::AddCustomContext("triad of 0.2 MB, GB/s",
                              std::to_string(bench::triad_bandwidth(200000) / 1e9));
  return bench::run_benchmarks(argc, argv);
}
