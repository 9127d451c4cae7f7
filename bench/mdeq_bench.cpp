// SPDX-License-Identifier: MIT
// How fast are the pieces of a training step of MDEQ, TINY and LARGE, and the whole of it? f, its
// recording on a tape and the replay of its VJP alone, the adjoint of each backward policy, a step
// with Gdeq, inference. GFLOP/s count the products of the definition of f's convolutions; a VJP
// with respect to z has as many as f. For a step they leave out the stem and the head.

#include <algorithm>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <deq/backend/everybody.hpp>
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/layer/equilibrium.hpp>

#include "mdeq_work.hpp"
#include "run_benchmarks.hpp"
#include "stream.hpp"

namespace {

using bench::MdeqWork;
using bench::Tensor;
using deq::Index;
using deq::MdeqConfig;
using B = deq::Cpu<float>;
using View = deq::BatchView<float>;
using Storage = deq::StepsOnly;

/// Of one application of f to one image.
double flop_of_f(const MdeqConfig& c) {
  Index products = 0;
  const auto conv = [&](Index in, Index out, Index kernel, Index branch) {
    products += kernel * kernel * in * out * c.resolution(branch) * c.resolution(branch);
  };
  for (Index i = 0; i < c.branches(); ++i) {
    const Index channels = c.channels_of(i);
    conv(channels, c.expansion * channels, 3, i);
    conv(c.expansion * channels, channels, 3, i);
    conv(channels, channels, 1, i);
    for (Index j = i + 1; j < c.branches(); ++j) conv(c.channels_of(j), channels, 1, j);
    for (Index j = 0; j < i; ++j)
      for (Index q = j + 1; q <= i; ++q)
        conv(c.channels_of(j), q == i ? channels : c.channels_of(j), 3, q);
  }
  return 2 * static_cast<double>(products);
}

/// f on a batch that is cut into blocks of samples as an Equilibrium cuts it.
class Blocks {
 public:
  using Map = deq::TapedMap<B, deq::MdeqFunction, std::dynamic_extent, std::dynamic_extent>;

  /// At z, and with the cotangent h.
  Blocks(MdeqWork& work, const Tensor& z, const Tensor& h)
      : f_(work.model.function(false)), z_(z), h_(h), out_(z.shape()) {
    const bench::MdeqArguments arguments = work.arguments();
    std::vector<Tensor> theta;
    Index parameters = 0;
    for (const Tensor& t : arguments.theta) {
      theta.push_back(t.frozen());
      parameters += t.size();
    }
    const Index dim = work.model.config().state_size(), batch = work.batch();
    size_ = deq::Schedule{}.block_size(dim, parameters, batch, deq::Scope::sample);
    everybody_(size_);  // grows here, not where threads share it
    for (Index first = 0; first < batch; first += size_) {
      const Tensor x = arguments.x[0].rows(first, std::min(size_, batch - first));
      maps_.emplace_back().bind(f_, {dim}, std::span(&x, 1), theta);
    }
  }

  void evaluate() {
    each([this](Index b, Map& map) { map.evaluate(samples(b), part(z_, b), part(out_, b)); });
  }
  void record() {
    each([this](Index b, Map& map) { map.record(part(z_, b), 1); });
  }
  /// w from h; inverse(b) is what a forward solve has left behind for block b.
  template <class Policy, class Inverse>
  void adjoint(const Policy& policy, Inverse inverse) {
    each([&](Index b, Map& map) {
      typename deq::detail::LendingPool<typename Policy::template Workspace<B>>::Loan loan(
          workspaces<Policy>());
      policy.template adjoint<B>(samples(b), map, inverse(b), part(h_, b), part(out_, b), *loan);
      if (b == 0) vjps_ = (*loan).report.mean_vjps();
    });
  }
  /// Products with J^T that the last adjoint took.
  double vjps() const { return vjps_; }

 private:
  template <class Body>
  void each(Body body) {
    deq::parallel_for(static_cast<Index>(maps_.size()),
                      [&](Index b) { body(b, maps_[static_cast<std::size_t>(b)]); });
  }
  template <class Policy>
  static auto& workspaces() {
    static deq::detail::LendingPool<typename Policy::template Workspace<B>> pool;
    return pool;
  }
  Index count(Index b) const { return std::min(size_, z_.extent(0) - b * size_); }
  deq::Samples samples(Index b) { return everybody_(count(b)); }
  View part(const Tensor& t, Index b) const { return t.batch().columns(b * size_, count(b)); }

  deq::MdeqFunction f_;
  Tensor z_, h_, out_;
  Index size_ = 0;
  double vjps_ = 0;
  deq::Everybody<B> everybody_;
  std::deque<Map> maps_;  // a tape stays where it is
};

/// Times `work`, which is `pieces` equal pieces; the time is that of one. Done twice before, since
/// some memory of the first time is still held in the second.
template <class Work>
void measure(benchmark::State& state, Work work, int pieces = 1) {
  work();
  work();
  const auto requests = deq::HostPool::instance().system_requests();
  for (auto _ : state) {
    const double start = bench::now();
    work();
    state.SetIterationTime((bench::now() - start) / pieces);
  }
  state.counters["allocations"] =
      static_cast<double>(deq::HostPool::instance().system_requests() - requests);
}

/// What one piece took: evaluations of f and VJPs, and what else costs as much as an f.
void count(benchmark::State& state, MdeqWork& work, double evaluations, double vjps,
           double others = 0) {
  const double flop = flop_of_f(work.model.config()) * static_cast<double>(work.batch());
  state.SetItemsProcessed(state.iterations() * work.batch());
  state.counters["evaluations"] = evaluations;
  state.counters["vjps"] = vjps;
  if (const double passes = evaluations + vjps + others; passes > 0)
    state.counters["GFLOP/s"] =
        benchmark::Counter(1e-9 * flop * passes, benchmark::Counter::kIsIterationInvariantRate);
}

void f(benchmark::State& state, const MdeqConfig& config) {
  MdeqWork work(config, state.range(0));
  const Tensor z = work.state();
  Blocks blocks(work, z, z);
  measure(state, [&] { blocks.evaluate(); });
  count(state, work, 1, 0);
}

void record(benchmark::State& state, const MdeqConfig& config) {
  MdeqWork work(config, state.range(0));
  const Tensor z = work.state();
  Blocks blocks(work, z, z);
  measure(state, [&] { blocks.record(); });
  count(state, work, 1, 0);
}

/// As an adjoint takes them: many of one block, then those of the next.
void vjp(benchmark::State& state, const MdeqConfig& config) {
  constexpr int vjps = 10;
  MdeqWork work(config, state.range(0));
  const Tensor z = work.state();
  Blocks blocks(work, z, z);
  blocks.record();
  const auto none = [](Index) -> const deq::NoInverse* { return nullptr; };
  const deq::Npg series{.k = vjps + 1, .lambda = 1};
  measure(
      state, [&] { blocks.adjoint(series, none); }, vjps);
  count(state, work, 0, 1);
}

template <class Policy>
void adjoint(benchmark::State& state, const MdeqConfig& config, const Policy& policy) {
  MdeqWork work(config, state.range(0));
  auto layer = deq::equilibrium<deq::Broyden<Storage>, deq::Gdeq>(
      work.model.function(false), bench::broyden<Storage>(bench::forward_iterations));
  const bench::MdeqArguments arguments = work.arguments();
  const auto solution = layer.solve(Tensor({work.batch(), config.state_size()}, 0),
                                    arguments.inputs(), arguments.params());
  Blocks blocks(work, solution.z, work.state());
  blocks.record();
  measure(state,
          [&] { blocks.adjoint(policy, [&](Index b) { return solution.inverse(b).get(); }); });
  count(state, work, 0, blocks.vjps());
}

/// Forward, and the gradients of all parameters with dropout; no optimizer.
void step(benchmark::State& state, const MdeqConfig& config) {
  MdeqWork work(config, state.range(0));
  auto classifier = work.classifier<Storage>(deq::Gdeq{});
  deq::PassReport pass;
  measure(state, [&] { pass = classifier.train(work.images, work.labels, work.masks); });
  // Beside the solve: f(z*), its recording, and the gradients of its states and its parameters.
  count(state, work, pass.solve.samples[0].evaluations, pass.adjoint.mean_vjps(), 4);
}

void inference(benchmark::State& state, const MdeqConfig& config) {
  MdeqWork work(config, state.range(0));
  auto classifier = work.classifier<Storage>(deq::Jfb{});
  measure(state, [&] { classifier.logits(work.images); });
  count(state, work, classifier.solution().report.samples[0].evaluations, 0);
}

void register_all() {
  const auto add = [](const std::string& name, auto run) {
    return benchmark::RegisterBenchmark(name.c_str(), run)
        ->ArgName("batch")
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  const auto add_all = [&](const std::string& size, const MdeqConfig& config) {
    const auto add_one = [&](const char* name, auto run) {
      add(size + name, [=](benchmark::State& state) { run(state, config); })->Arg(1)->Arg(32);
    };
    add_one("/f", f);
    add_one("/record", record);
    add_one("/vjp", vjp);
    add_one("/step_gdeq", step);
    add_one("/inference", inference);
  };
  add_all("tiny", MdeqConfig::tiny());
  add_all("large", MdeqConfig::large());

  const auto add_adjoint = [&](const std::string& name, auto policy) {
    add("tiny/adjoint_" + name, [=](benchmark::State& state) {
      adjoint(state, MdeqConfig::tiny(), policy);
    })->Arg(32);
  };
  add_adjoint("implicit", deq::Implicit<deq::Broyden<Storage>>{
                              bench::broyden<Storage>(bench::backward_iterations)});
  add_adjoint("jfb", deq::Jfb{});
  add_adjoint("npg", deq::Npg{});
  add_adjoint("gdeq", deq::Gdeq{});
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  return bench::run_benchmarks(argc, argv);
}
