// SPDX-License-Identifier: MIT
// How fast is each convolution of MDEQ's f, and by which algorithm? GFLOP/s count the products of
// the definition, 2 * taps * in * out a pixel, so that Winograd's algorithm can exceed the peak of
// the machine, which the benchmark `block` shows for one thread.

#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <deq/backend/cpu/conv/schedule.hpp>
#include <deq/backend/cpu/conv/weight_gradient.hpp>
#include <deq/core/random.hpp>

#include "run_benchmarks.hpp"

namespace {

using deq::Conv2dGeometry;
using deq::Index;
using deq::detail::ConvAlgorithm;
using deq::detail::ConvPlan;
using deq::detail::own_algorithm;
using Numbers = deq::Array<deq::Cpu<float>>;

Numbers random_numbers(Index n, std::uint64_t seed) {
  deq::Random random(seed, deq::Purpose::user);
  Numbers x(n);
  for (Index i = 0; i < n; ++i) x.data()[i] = static_cast<float>(random.normal());
  return x;
}

void count(benchmark::State& state, const Conv2dGeometry& g) {
  const double flop = 2.0 * static_cast<double>(g.samples * g.out_pixels() * g.out_channels) *
                      static_cast<double>(g.patch());
  state.counters["GFLOP/s"] =
      benchmark::Counter(1e-9 * flop, benchmark::Counter::kIsIterationInvariantRate);
  state.SetItemsProcessed(state.iterations() * g.samples);
}

/// The innermost loop alone, in the first-level cache: what one thread can reach.
void block(benchmark::State& state) {
  constexpr int vectors = deq::detail::max_panel, rows = deq::detail::max_rows(vectors);
  constexpr Index depth = 128, width = vectors * deq::detail::simd_width<float>;
  const Numbers a = random_numbers(rows * depth, 1), b = random_numbers(depth * width, 2);
  const float* row[rows];
  for (int r = 0; r < rows; ++r) row[r] = a.data() + r * depth;
  deq::detail::Block<float, rows, vectors> sums;
  for (auto _ : state) {
    sums.set_product(row, b.data(), depth);
    benchmark::DoNotOptimize(sums);
  }
  state.counters["GFLOP/s"] = benchmark::Counter(2e-9 * rows * static_cast<double>(width * depth),
                                                 benchmark::Counter::kIsIterationInvariantRate);
}

void convolve(benchmark::State& state, Conv2dGeometry g, bool transposed, ConvAlgorithm algorithm) {
  g.samples = state.range(0);
  const ConvPlan<float> plan(g, transposed, algorithm);
  const Numbers w = random_numbers(g.out_channels * g.patch(), 2);
  const Index in = g.samples * g.in_pixels() * g.in_channels;
  const Index out = g.samples * g.out_pixels() * g.out_channels;
  const Numbers x = random_numbers(transposed ? out : in, 1), packed(plan.packed_size());
  const Numbers y(transposed ? in : out);
  plan.pack(w.data(), packed.data());
  for (auto _ : state) plan.run(x.data(), packed.data(), {}, y.data());
  count(state, g);
}

void weight_gradient(benchmark::State& state, Conv2dGeometry g, ConvAlgorithm algorithm) {
  g.samples = state.range(0);
  const Numbers x = random_numbers(g.samples * g.in_pixels() * g.in_channels, 1);
  const Numbers dy = random_numbers(g.samples * g.out_pixels() * g.out_channels, 2);
  const Numbers dw(g.out_channels * g.patch());
  for (auto _ : state)
    deq::detail::weight_gradient(g, x.data(), dy.data(), dw.data(), false, algorithm);
  count(state, g);
}

struct Named {
  std::string name;
  Conv2dGeometry geometry;
};
/// The two 3x3 convolutions of every residual block, a strided one and two of 1x1.
std::vector<Named> shapes() {
  std::vector<Named> list;
  const auto add = [&](Index in, Index out, Index side, Index kernel, Index stride) {
    list.push_back({std::to_string(in) + "_" + std::to_string(out) + "_at_" + std::to_string(side) +
                        "_k" + std::to_string(kernel) + "_s" + std::to_string(stride),
                    {1, in, side, side, out, kernel, kernel, stride, kernel / 2}});
  };
  for (const auto& [channels, side] :
       {std::pair<Index, Index>{24, 32}, {24, 16}, {32, 32}, {64, 16}, {128, 8}, {256, 4}}) {
    add(channels, 5 * channels, side, 3, 1);
    add(5 * channels, channels, side, 3, 1);
  }
  add(24, 24, 32, 3, 2);
  add(24, 24, 32, 1, 1);
  add(256, 128, 4, 1, 1);
  return list;
}

void register_all() {
  benchmark::RegisterBenchmark("block", block);
  const auto settings = [](benchmark::internal::Benchmark* b) {
    b->ArgName("samples")->Arg(2)->Arg(8)->UseRealTime()->Unit(benchmark::kMicrosecond);
  };
  for (const Named& shape : shapes()) {
    const Conv2dGeometry g = shape.geometry;
    const auto add = [&](const std::string& what, bool transposed, ConvAlgorithm algorithm) {
      settings(benchmark::RegisterBenchmark(
          (shape.name + "/" + what).c_str(),
          [=](benchmark::State& state) { convolve(state, g, transposed, algorithm); }));
    };
    add("direct", false, ConvAlgorithm::direct);
    if (g.kernel_height == 3 && g.stride == 1) {
      add("winograd2", false, ConvAlgorithm::winograd2);
      add("winograd4", false, ConvAlgorithm::winograd4);
    }
    const auto add_gradients = [&](const std::string& by, ConvAlgorithm of_input,
                                   ConvAlgorithm of_weight) {
      add("vjp_input" + by, true, of_input);
      settings(benchmark::RegisterBenchmark(
          (shape.name + "/vjp_weight" + by).c_str(),
          [=](benchmark::State& state) { weight_gradient(state, g, of_weight); }));
    };
    add_gradients("", own_algorithm(g, true), own_algorithm(g, false));
    if constexpr (deq::detail::has_onednn<float>) {
      add("onednn", false, ConvAlgorithm::onednn);
      add_gradients("_onednn", ConvAlgorithm::onednn, ConvAlgorithm::onednn);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  return bench::run_benchmarks(argc, argv);
}
