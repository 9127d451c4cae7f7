// SPDX-License-Identifier: MIT
// Maps written by hand for tests: they satisfy the concepts of deq/core/map.hpp without a tape.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <numeric>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include <deq/core/map.hpp>
#include <deq/core/report.hpp>
#include <deq/inverse/concept.hpp>
#include <deq/solver/concept.hpp>

namespace deq_test {

using deq::Index;
using deq::detail::worse;

/// Uniform numbers in [-1, 1), the same with every standard library.
class Noise {
 public:
  explicit Noise(std::uint32_t seed) : engine_(seed) {}
  double operator()() { return static_cast<double>(engine_()) * 0x1p-31 - 1; }
  std::vector<double> vector(Index n, double scale = 1) {
    std::vector<double> x(static_cast<std::size_t>(n));
    for (double& xi : x) xi = scale * (*this)();
    return x;
  }
  std::size_t below(std::size_t n) { return engine_() % n; }

 private:
  std::mt19937 engine_;
};

/// f given by one function of one column, f(sample, z, f): all that a solver asks for. Host memory.
template <class B, class Function>
class ColumnMap {
  using S = typename B::Scalar;

 public:
  using Backend = B;

  ColumnMap(Index dim, Function function) : dim_(dim), function_(std::move(function)) {}

  Index dim() const { return dim_; }
  void evaluate(deq::Samples a, deq::BatchView<const S> z, deq::BatchView<S> out) {
    for (Index j = 0; j < a.count; ++j) {
      function_(a[j], z.col(j), out.col(j));
      ++evaluations;
      if (recorded_sample == a[j]) path.emplace_back(z[j].begin(), z[j].end());
    }
  }

  long evaluations = 0;
  Index recorded_sample = -1;  ///< whose points are kept in `path`
  std::vector<std::vector<S>> path;

 private:
  Index dim_;
  Function function_;
};
template <class B, class Function>
ColumnMap<B, Function> column_map(Index dim, Function function) {
  return {dim, std::move(function)};
}

/// f(z) = A z + b, one A (row-major) and b for all samples, with all that a map can offer.
template <class B>
class DenseAffine {
  using S = typename B::Scalar;

 public:
  using Backend = B;

  DenseAffine(std::vector<double> a, std::vector<double> b) : a_(std::move(a)), b_(std::move(b)) {}

  Index dim() const { return static_cast<Index>(b_.size()); }
  void evaluate(deq::Samples a, deq::BatchView<const S> z, deq::BatchView<S> out) {
    linear(a, z, out);
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < dim(); ++i)
        out.col(j)[i] += static_cast<S>(b_[static_cast<std::size_t>(i)]);
  }
  void linear(deq::Samples a, deq::BatchView<const S> z, deq::BatchView<S> out) {
    products += a.count;
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < dim(); ++i) {
        S sum = 0;
        for (Index k = 0; k < dim(); ++k) sum += entry(i, k) * z.col(j)[k];
        out.col(j)[i] = sum;
      }
  }
  DenseAffine& linearize(deq::BatchView<const S>) { return *this; }
  void vjp(deq::Samples a, deq::BatchView<const S> w, deq::BatchView<S> out) {
    for (Index j = 0; j < a.count; ++j)
      for (Index i = 0; i < dim(); ++i) {
        S sum = 0;
        for (Index k = 0; k < dim(); ++k) sum += entry(k, i) * w.col(j)[k];
        out.col(j)[i] = sum;
      }
  }

  long products = 0;

 private:
  S entry(Index i, Index k) const {
    return static_cast<S>(a_[static_cast<std::size_t>(i * dim() + k)]);
  }

  std::vector<double> a_, b_;
};

/// The worked example of the tests ("case A"): f(z) = tanh(W z + b), n = 3.
struct CaseA {
  static constexpr double W[3][3] = {{.3, -.2, .1}, {.1, .25, -.3}, {-.2, .15, .2}};
  static constexpr double b[3] = {.5, -.3, .2};
  static constexpr double t[3] = {1, 0, -1};  ///< the loss is |z - t|^2 / 2
  static constexpr double solution[3] = {.6396634508792501, -.3128152316494730, .03141835141331207};

  template <class S>
  static void evaluate(const S* z, S* f) {
    for (int i = 0; i < 3; ++i) {
      S sum = static_cast<S>(b[i]);
      for (int k = 0; k < 3; ++k) sum += static_cast<S>(W[i][k]) * z[k];
      f[i] = std::tanh(sum);
    }
  }
};
template <class B>
auto case_a() {
  using S = typename B::Scalar;
  return column_map<B>(3, [](Index, const S* z, S* f) { CaseA::evaluate(z, f); });
}

/// f_p(z) = tanh(W_p z + b_p) for a list of parameters p; `gain` bounds the norm of W_p loosely.
struct TanhFamily {
  TanhFamily(Index dim, Index members, double gain, std::uint32_t seed) : n(dim) {
    Noise random(seed);
    for (Index p = 0; p < members; ++p) {
      W.push_back(random.vector(n * n, gain * std::sqrt(3 / static_cast<double>(n))));
      b.push_back(random.vector(n));
    }
  }
  template <class S>
  void evaluate(Index p, const S* z, S* f) const {
    const auto& w = W[static_cast<std::size_t>(p)];
    for (Index i = 0; i < n; ++i) {
      double sum = b[static_cast<std::size_t>(p)][static_cast<std::size_t>(i)];
      for (Index k = 0; k < n; ++k)
        sum += w[static_cast<std::size_t>(i * n + k)] * static_cast<double>(z[k]);
      f[i] = static_cast<S>(std::tanh(sum));
    }
  }

  Index n;
  std::vector<std::vector<double>> W, b;
};

/// What a solve leaves: the state of all samples, column by column, and the report.
template <class S>
struct Solved {
  std::vector<S> z;
  deq::SolveReport report;

  const deq::SampleReport& sample(Index s = 0) const {
    return report.samples[static_cast<std::size_t>(s)];
  }
  const S* col(Index s, Index dim) const { return z.data() + s * dim; }
};

/// Solves from the given start (all columns), on the backend of the map.
template <deq::KeepInverse keep = deq::KeepInverse::no, class Solver, class Map,
          class Observer = deq::NoObserver>
Solved<typename Map::Backend::Scalar> solve(
    const Solver& solver, Map& f, std::vector<typename Map::Backend::Scalar> z,
    typename Solver::template Workspace<typename Map::Backend>& ws, Observer&& observer = {}) {
  const Index count = f.dim() > 0 ? static_cast<Index>(z.size()) / f.dim() : 0;
  solver.template solve<keep>(f, {z.data(), f.dim(), count}, ws, std::forward<Observer>(observer));
  return {std::move(z), ws.report};
}
template <class Solver, class Map>
Solved<typename Map::Backend::Scalar> solve(const Solver& solver, Map& f,
                                            std::vector<typename Map::Backend::Scalar> z) {
  typename Solver::template Workspace<typename Map::Backend> ws;
  return solve(solver, f, std::move(z), ws);
}

/// The samples 0 .. count - 1.
class Everybody {
 public:
  explicit Everybody(Index count) : ids_(static_cast<std::size_t>(count)) {
    std::iota(ids_.begin(), ids_.end(), Index(0));
  }
  operator deq::Samples() const { return {ids_.data(), static_cast<Index>(ids_.size())}; }

 private:
  std::vector<Index> ids_;
};

/// H x or H^T x for sample s of a batch.
template <class B, class H, class S = typename B::Scalar>
std::vector<S> apply(const H& h, Index s, std::vector<S> x, bool transposed = false) {
  const Index n = h.dim();
  std::vector<S> all(static_cast<std::size_t>((s + 1) * n)), out(all.size());
  std::copy(x.begin(), x.end(), all.begin() + s * n);
  deq::Array<B> scratch;
  const deq::Samples a{&s, 1};
  const deq::BatchView<const S> in{all.data(), n, s + 1};
  const deq::BatchView<S> result{out.data(), n, s + 1};
  if (transposed)
    h.apply_transpose(a, in, result, scratch);
  else
    h.apply(a, in, result, scratch);
  return {out.begin() + s * n, out.end()};
}

template <class T>
bool same_bits(const T* x, const T* y, Index n) {
  return n == 0 || std::memcmp(x, y, static_cast<std::size_t>(n) * sizeof(T)) == 0;
}

/// max_i |x_i - y_i| / max_i |y_i|; NaN anywhere gives NaN.
template <class X, class Y>
double relative_error(const X& x, const Y& y) {
  double difference = 0, scale = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(std::size(y)); ++i) {
    difference = worse(difference, std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
    scale = std::max(scale, std::abs(static_cast<double>(y[i])));
  }
  return scale > 0 ? difference / scale : difference;
}

}  // namespace deq_test
