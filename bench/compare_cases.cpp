// SPDX-License-Identifier: MIT
// How fast is one piece of work that PyTorch can do as well? Our side of compare.sh:
//
//     compare_cases CASE [--seconds S] [--threads N] [--storage steps|compact|pairs]
//                   [--export FILE]
//
// prints one line of JSON: seconds of one unit of work (a median after a warm-up), the evaluations
// of f, the peak of memory, and norms for a check that the peer does the same. With --export it
// writes the weights and the data of the case instead, for the peer to read.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <deq/backend/everybody.hpp>
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/fixed_point.hpp>

#include "dense_tanh.hpp"
#include "mdeq_work.hpp"

namespace {

using bench::broyden;
using bench::exactly;
using bench::Tensor;
using deq::Index;
using B = deq::Cpu<float>;

constexpr int dense_iterations = 30, vjps = 20;

struct Options {
  std::string name, export_to, storage = "steps";
  double seconds = 2;
  int threads = 2;
};

/// Wall-clock time, and processor time of all threads.
struct Times {
  double wall = 0, processor = 0;
};

struct Result {
  Times time;
  double evaluations = 0;
  std::vector<std::pair<std::string, double>> check;
};

Times times_of(const std::function<void()>& work) {
  const std::clock_t processor = std::clock();
  const auto start = std::chrono::steady_clock::now();
  work();
  return {std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(),
          static_cast<double>(std::clock() - processor) / CLOCKS_PER_SEC};
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

/// Medians of one call, of work that has been done before. A repetition is as many calls as 10 ms
/// need; repetitions go on until `budget` seconds are spent, and are at least three unless that
/// takes four times the budget. peers/measure.py does the same.
Times median_times(double budget, const std::function<void()>& work) {
  std::vector<double> wall, processor;
  double spent = 0;
  const auto repeat = [&](int calls) {
    const Times t = times_of([&] {
      for (int i = 0; i < calls; ++i) work();
    });
    wall.push_back(t.wall / calls);
    processor.push_back(t.processor / calls);
    spent += t.wall;
  };
  repeat(1);
  const int calls = std::max(1, static_cast<int>(0.01 / std::max(wall[0], 1e-9)));
  if (calls > 1) {
    wall.clear();
    processor.clear();
  }
  while (spent < budget || (wall.size() < 3 && spent < 4 * budget)) repeat(calls);
  return {median(wall), median(processor)};
}

/// VmHWM, the most memory this process has held, or VmRSS, what it holds; 0 where unknown.
long status_kib(const std::string& field) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);)
    if (line.rfind(field + ":", 0) == 0) return std::atol(line.c_str() + field.size() + 1);
  return 0;
}

double squares(const Tensor& t) {
  double sum = 0;
  for (const float* v = t.data(); v != t.data() + t.size(); ++v) sum += double{*v} * double{*v};
  return sum;
}
double norm(const Tensor& t) { return std::sqrt(squares(t)); }

// MDEQ --------------------------------------------------------------------------------------------

/// A freshly initialised network, and data. Named SIZE_WHAT_...: tiny_step_gdeq, tiny_inference_32.
template <class Storage>
class MdeqCase {
 public:
  explicit MdeqCase(const std::string& name)
      : what_(part(name, 1)),
        detail_(part(name, 2)),
        work_(part(name, 0) == "large" ? deq::MdeqConfig::large() : deq::MdeqConfig::tiny(),
              detail_ == "1" ? 1 : 32) {}

  void export_to(const std::string& path) const {
    deq::SafetensorsWriter writer;
    work_.model.save(writer);
    add(writer, "images", work_.images);
    writer.add<std::int64_t>("labels", {work_.batch()},
                             std::vector<std::int64_t>(work_.labels.begin(), work_.labels.end()));
    for (std::size_t i = 0; i < work_.masks.size(); ++i)
      add(writer, "mask." + std::to_string(i), work_.masks[i]);
    add(writer, "z", deq::mdeq_state_to_nchw(work_.model.config(), work_.state()));
    writer.write(path);
  }

  Result run(double budget) {
    if (what_ == "inference") return inference(budget);
    if (what_ == "f" || what_ == "vjp") return alone(budget);
    if (detail_ == "gdeq") return step(budget, deq::Gdeq{});
    if (detail_ == "jfb") return step(budget, deq::Jfb{});
    if (detail_ == "npg") return step(budget, deq::Npg{.k = 5, .lambda = 0.5});
    if (detail_ == "implicit")
      return step(budget, deq::Implicit<deq::Broyden<Storage>>{
                              broyden<Storage>(bench::backward_iterations)});
    throw deq::InvalidArgument("compare_cases: no such gradient: " + detail_);
  }

 private:
  static std::string part(const std::string& name, int i) {
    std::size_t first = 0;
    for (; i > 0; --i) first = name.find('_', first) + 1;
    return name.substr(first, name.find('_', first) - first);
  }
  static void add(deq::SafetensorsWriter& writer, const std::string& name, const Tensor& t) {
    writer.add<float>(name, t.shape(), t.to_host());
  }

  /// Forward, and the gradients of all parameters; no optimizer.
  template <class Policy>
  Result step(double budget, Policy policy) {
    auto classifier = work_.template classifier<Storage>(policy);
    const auto train = [&] { return classifier.train(work_.images, work_.labels, work_.masks); };
    const deq::PassReport pass = train();
    double gradient = 0;
    for (const auto& p : work_.model.parameters()) gradient += squares(p.grad);
    return {median_times(budget, train),
            static_cast<double>(pass.solve.samples[0].evaluations),
            {{"loss", pass.loss},
             {"z", norm(classifier.solution().z)},
             {"gradient", std::sqrt(gradient)}}};
  }

  Result inference(double budget) {
    auto classifier = work_.template classifier<Storage>(deq::Jfb{});
    const Tensor logits = classifier.logits(work_.images);
    return {median_times(budget, [&] { classifier.logits(work_.images); }),
            static_cast<double>(classifier.solution().report.samples[0].evaluations),
            {{"logits", norm(logits)}, {"z", norm(classifier.solution().z)}}};
  }

  /// One application of f; or a product with J^T, the mean of a Neumann series of them after one
  /// recording.
  Result alone(double budget) {
    const bench::MdeqArguments arguments = work_.arguments();
    const Tensor z = work_.state();
    auto layer =
        deq::equilibrium<deq::FixedPoint>(work_.model.function(false), deq::FixedPoint{exactly(0)},
                                          deq::Npg{.k = vjps + 1, .lambda = 1});
    const auto solution = layer.solve(z, arguments.inputs(), arguments.params());
    if (what_ == "f")
      return {median_times(budget, [&] { layer.apply(solution); }),
              1,
              {{"z", norm(layer.apply(solution))}}};
    deq::EquilibriumGradients<B> g;
    g.inputs.resize(arguments.x.size());
    g.params.resize(arguments.theta.size());
    layer.gradient(solution, z, g);
    const Times t = median_times(budget, [&] { layer.gradient(solution, z, g); });
    return {{t.wall / vjps, t.processor / vjps}, 1, {{"z", norm(g.adjoint)}}};
  }

  std::string what_, detail_;
  bench::MdeqWork work_;
};

// Dense map ---------------------------------------------------------------------------------------

double norm(deq::BatchView<float> z) {
  double sum = 0;
  for (Index i = 0; i < z.size(); ++i) sum += double{z.data[i]} * double{z.data[i]};
  return std::sqrt(sum);
}

Times times_of_f(bench::DenseTanh<float>& f, Index batch, double budget) {
  deq::Array<B> in, out;
  const auto z = in.batch(f.dim(), batch), fz = out.batch(f.dim(), batch);
  B::fill(z.data, z.size(), 0.1f);
  deq::Everybody<B> everybody;
  f.begin();
  return median_times(budget, [&] { f.evaluate(everybody(batch), z, fz); });
}

/// A whole solve from z = 0.
template <class Solver>
Result solve(Solver solver, Index dim, Index batch, double budget) {
  bench::DenseTanh<float> f(dim, batch);
  solver.stopping = exactly(dense_iterations);
  typename Solver::template Workspace<B> ws;
  deq::Array<B> memory;
  const auto z = memory.batch(dim, batch);
  const auto work = [&] {
    B::fill(z.data, z.size(), 0);
    f.begin();
    solver.template solve<deq::KeepInverse::no>(f, z, ws, deq::NoObserver{});
  };
  work();
  const Times time = median_times(budget, work);
  return {time, static_cast<double>(ws.report.samples[0].evaluations), {{"z", norm(z)}}};
}

/// The same less its evaluations of f.
template <class Solver>
Result overhead(Solver solver, Index dim, Index batch, double budget) {
  bench::DenseTanh<float> f(dim, batch);
  Result r = solve(solver, dim, batch, budget);
  const Times one = times_of_f(f, batch, budget / 4);
  r.time.wall -= r.evaluations * one.wall;
  r.time.processor -= r.evaluations * one.processor;
  return r;
}

/// Named METHOD_D_BATCH, or broyden_overhead_BATCH with D = 512.
template <class Storage>
class DenseCase {
 public:
  explicit DenseCase(const std::string& name) : name_(name) {
    const std::size_t last = name.rfind('_');
    batch_ = std::atol(name.c_str() + last + 1);
    const long dim = std::atol(name.c_str() + name.rfind('_', last - 1) + 1);
    if (dim > 0) dim_ = dim;
    deq::require(batch_ > 0, "compare_cases: no such case: ", name);
  }

  void export_to(const std::string& path) const {
    const bench::DenseTanh<float> f(dim_, batch_);
    deq::SafetensorsWriter writer;
    writer.add<float>("W", {dim_, dim_}, f.weights());
    writer.add<float>("x", {batch_, dim_}, f.inputs());
    writer.write(path);
  }

  Result run(double budget) const {
    const deq::Broyden<Storage> b = broyden<Storage>(dense_iterations);
    if (name_.rfind("broyden_overhead", 0) == 0) return overhead(b, dim_, batch_, budget);
    if (name_.rfind("broyden", 0) == 0) return solve(b, dim_, batch_, budget);
    if (name_.rfind("anderson", 0) == 0) return solve(deq::Anderson{}, dim_, batch_, budget);
    if (name_.rfind("fixed_point", 0) == 0) return solve(deq::FixedPoint{}, dim_, batch_, budget);
    throw deq::InvalidArgument("compare_cases: no such case: " + name_);
  }

 private:
  std::string name_;
  Index dim_ = 512, batch_ = 0;
};

// Ours alone --------------------------------------------------------------------------------------

/// Cost by batch, a sample, and by D, a number of the state; f left out of the latter, since it is
/// quadratic in D.
template <class Storage>
void linear(double budget) {
  const deq::Broyden<Storage> b = broyden<Storage>(dense_iterations);
  for (Index batch = 1; batch <= 1024; batch *= 4)
    std::printf("linear_batch %td %.4g s a sample\n", batch,
                solve(b, 512, batch, budget / 10).time.wall / static_cast<double>(batch));
  for (Index dim = 1; dim <= 1024; dim *= 4)
    std::printf("linear_dim %td %.4g s a number\n", dim,
                overhead(b, dim, 128, budget / 10).time.wall / static_cast<double>(128 * dim));
}

/// What early convergence saves: half the samples start next to their solution, the other half at
/// 0, against all of them at 0. Ten iterations, which do not suffice from 0.
template <class Storage>
void half_converged(double budget) {
  const Index dim = 512, batch = 128;
  bench::DenseTanh<float> f(dim, batch);
  deq::Broyden<Storage> solver = broyden<Storage>(60);
  solver.stopping.relative_tolerance = 1e-6;
  typename deq::Broyden<Storage>::template Workspace<B> ws;
  deq::Array<B> solved, memory;
  const auto near = solved.batch(dim, batch), z = memory.batch(dim, batch);
  B::fill(near.data, near.size(), 0);
  f.begin();
  solver.template solve<deq::KeepInverse::no>(f, near, ws, deq::NoObserver{});
  for (Index i = 0; i < near.size(); ++i) near.data[i] *= 1.0005f;

  solver = broyden<Storage>(10);
  solver.stopping.relative_tolerance = 1e-4;
  deq::Everybody<B> everybody;
  const auto timed = [&](Index converging) {
    return median_times(budget,
                        [&] {
                          B::fill(z.data, z.size(), 0);
                          B::copy(everybody(converging), near, z);
                          solver.template solve<deq::KeepInverse::no>(f, z, ws, deq::NoObserver{});
                        })
        .wall;
  };
  const double none = timed(0);
  const Index early_none = ws.report.count(deq::SolveStatus::converged);
  const double half = timed(batch / 2);
  int most = 0;
  for (Index s = 0; s < batch / 2; ++s)
    most = std::max(most, ws.report.samples[static_cast<std::size_t>(s)].iterations);
  std::printf(
      "half_converged %.3f none/half; converged %td and %td of %td, the early ones within %d\n",
      none / half, early_none, ws.report.count(deq::SolveStatus::converged), batch, most);
}

// -------------------------------------------------------------------------------------------------

void print(const std::string& name, const Result& r, long before) {
  std::printf(
      "{\"case\": \"%s\", \"seconds\": %.9g, \"cpu_seconds\": %.9g, \"evaluations\": %g, "
      "\"peak_kib\": %ld, "
      "\"before_kib\": %ld, \"check\": {",
      name.c_str(), r.time.wall, r.time.processor, r.evaluations, status_kib("VmHWM"), before);
  for (std::size_t i = 0; i < r.check.size(); ++i)
    std::printf("%s\"%s\": %.9g", i ? ", " : "", r.check[i].first.c_str(), r.check[i].second);
  std::printf("}}\n");
}

template <class Case>
void run_case(Case c, const Options& o) {
  if (!o.export_to.empty()) return c.export_to(o.export_to);
  const long before = status_kib("VmRSS");
  print(o.name, c.run(o.seconds), before);
}

template <class Storage>
void run(const Options& o) {
  if (o.name == "linear") return linear<Storage>(o.seconds);
  if (o.name == "half_converged") return half_converged<Storage>(o.seconds);
  if (o.name.rfind("tiny", 0) == 0 || o.name.rfind("large", 0) == 0)
    return run_case(MdeqCase<Storage>(o.name), o);
  run_case(DenseCase<Storage>(o.name), o);
}

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a.rfind("--", 0) != 0) {
      o.name = a;
      continue;
    }
    deq::require(++i < argc, "compare_cases: ", a, " needs a value");
    if (a == "--seconds")
      o.seconds = std::atof(argv[i]);
    else if (a == "--threads")
      o.threads = std::atoi(argv[i]);
    else if (a == "--storage")
      o.storage = argv[i];
    else if (a == "--export")
      o.export_to = argv[i];
    else
      throw deq::InvalidArgument("compare_cases: unknown option " + a);
  }
  deq::require(!o.name.empty(),
               "usage: compare_cases CASE [--seconds S] [--threads N] "
               "[--storage steps|compact|pairs] [--export FILE]");
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Options o = parse(argc, argv);
    deq::set_num_threads(o.threads);
    if (o.storage == "pairs")
      run<deq::Pairs>(o);
    else if (o.storage == "compact")
      run<deq::CompactSteps>(o);
    else
      run<deq::StepsOnly>(o);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}
