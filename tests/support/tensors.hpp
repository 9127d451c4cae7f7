// SPDX-License-Identifier: MIT
// Tensors for the tests of operations: random ones, comparison with a naive reference, and the two
// promises that every operation is held to: the same bits for any number of threads, and for a
// sample whatever its neighbours in the batch are.
#pragma once

#include <array>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <typeinfo>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/kernels.hpp>
#include <deq/core/random.hpp>
#include <deq/tape/ops.hpp>

#include "threads.hpp"

namespace deq_test {

using deq::Index;
using deq::Shape;

template <class S>
using TensorOf = deq::Tensor<deq::Cpu<S>>;
using Tensor = TensorOf<double>;

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

template <class S = double>
TensorOf<S> random_tensor(const Shape& shape, std::uint64_t seed, double low = -1,
                          double high = 1) {
  deq::Random random(seed, deq::Purpose::user);
  std::vector<S> x(static_cast<std::size_t>(shape.size()));
  for (S& xi : x) xi = static_cast<S>(random.uniform(low, high));
  return TensorOf<S>(shape, x);
}

// Naive references --------------------------------------------------------------------------------

/// The indices of one element.
using Place = std::array<Index, static_cast<std::size_t>(Shape::max_rank)>;

/// visit(place) for every element, in row-major order.
template <class Visit>
void for_each_place(const Shape& shape, Visit visit) {
  for (Index k = 0; k < shape.size(); ++k) {
    Place place{};
    for (Index d = shape.rank(), rest = k; d-- > 0; rest /= shape[d])
      place[static_cast<std::size_t>(d)] = rest % shape[d];
    visit(place);
  }
}

template <class S>
double at(const TensorOf<S>& x, const Place& place) {
  Index k = 0;
  for (Index d = 0; d < x.shape().rank(); ++d)
    k = k * x.extent(d) + place[static_cast<std::size_t>(d)];
  return static_cast<double>(x.data()[k]);
}
template <class S, std::convertible_to<Index>... I>
double at(const TensorOf<S>& x, I... i) {
  return at(x, Place{static_cast<Index>(i)...});
}

template <class S>
inline constexpr double rounding = std::same_as<S, double> ? 1e-12 : 1e-5;

/// y has this shape, and the elements expected(place) to rounding: ||y - e|| <= tolerance ||e||.
template <class S, class Expected>
void check_values(const TensorOf<S>& y, const Shape& shape, Expected expected,
                  double tolerance = rounding<S>) {
  REQUIRE(y.shape() == shape);
  double error = 0, scale = 0;  // sums of squares: a NaN stays in them
  for_each_place(shape, [&](const Place& place) {
    const double e = expected(place), difference = at(y, place) - e;
    error += difference * difference;
    scale += e * e;
  });
  CHECK(std::sqrt(error) <= tolerance * std::sqrt(scale));
}

template <class S>
bool same_bits(const std::vector<S>& a, const std::vector<S>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(S)) == 0);
}
template <class S>
bool same_bits(const TensorOf<S>& a, const TensorOf<S>& b) {
  return a.shape() == b.shape() && same_bits(a.to_host(), b.to_host());
}

/// f throws an E and nothing derived from it, whose message contains all the parts.
template <class E, class F>
void check_error(F f, std::initializer_list<std::string> parts) {
  try {
    f();
    FAIL_CHECK("nothing was thrown; expected the message to name ", *parts.begin());
  } catch (const E& error) {
    CHECK(typeid(error) == typeid(E));
    const std::string what = error.what();
    for (const std::string& part : parts)
      CHECK_MESSAGE(what.find(part) != std::string::npos, "'", what, "' lacks '", part, "'");
  }
}

// Recordings --------------------------------------------------------------------------------------

/// y = f(x...) on a tape of its own.
template <class S, std::size_t n>
class Recorded {
 public:
  using B = deq::Cpu<S>;

  template <class F, class... X>
  explicit Recorded(F f, const X&... x) : x_{tape_.input(x)...}, y_(std::apply(f, x_)) {}

  const TensorOf<S>& y() const { return y_.value(); }

  /// The gradients of <cotangent, y> with respect to all inputs.
  std::vector<TensorOf<S>> vjp(const TensorOf<S>& cotangent) {
    return vjp(cotangent, std::span<const deq::Var<B>>(x_));
  }
  /// The gradient with respect to input i alone.
  TensorOf<S> vjp(const TensorOf<S>& cotangent, std::size_t i) {
    return vjp(cotangent, std::span<const deq::Var<B>>(&x_[i], 1)).front();
  }
  /// start_i + the gradient with respect to input i, for all inputs.
  std::vector<TensorOf<S>> accumulated(const TensorOf<S>& cotangent,
                                       const std::vector<TensorOf<S>>& start) {
    std::vector<TensorOf<S>> gradients;
    for (const TensorOf<S>& s : start) gradients.push_back(s.clone());
    tape_.vjp(y_, cotangent, x_, gradients, true);
    return gradients;
  }
  /// The gradients once more, and for the last time.
  std::vector<TensorOf<S>> last_vjp(const TensorOf<S>& cotangent) {
    const std::vector<TensorOf<S>> gradients = unset(x_);
    tape_.vjp_and_clear(y_, cotangent, x_, gradients);
    return gradients;
  }

 private:
  /// NaN to begin with: an element that is not overwritten is seen.
  static std::vector<TensorOf<S>> unset(std::span<const deq::Var<B>> wrt) {
    std::vector<TensorOf<S>> gradients;
    for (const deq::Var<B>& x : wrt)
      gradients.emplace_back(x.shape(), static_cast<S>(not_a_number));
    return gradients;
  }
  std::vector<TensorOf<S>> vjp(const TensorOf<S>& cotangent, std::span<const deq::Var<B>> wrt) {
    const std::vector<TensorOf<S>> gradients = unset(wrt);
    tape_.vjp(y_, cotangent, wrt, gradients);
    return gradients;
  }

  deq::Tape<B> tape_;
  std::array<deq::Var<B>, n> x_;
  deq::Var<B> y_;
};
template <class F, class S, class... X>
Recorded(F, const deq::Tensor<deq::Cpu<S>>&, const X&...) -> Recorded<S, 1 + sizeof...(X)>;

// What holds for every operation ------------------------------------------------------------------

/// y = f(x...) and all gradients have the same bits for one thread and for several. The tensors
/// have to be large enough for the kernels to share the work.
template <class F, class S, class... X>
void check_threads(const std::string& name, F f, const deq::Tensor<deq::Cpu<S>>& x,
                   const X&... more) {
  CAPTURE(name);
  const auto run = [&](int threads) {
    const Threads scope(threads);
    Recorded recorded(f, x, more...);
    auto results = recorded.vjp(random_tensor<S>(recorded.y().shape(), 7));
    results.push_back(recorded.y());
    return results;
  };
  const auto one = run(1);
  for (const int threads : {2, 3}) {
    CAPTURE(threads);
    const auto several = run(threads);
    for (std::size_t k = 0; k < one.size(); ++k) {
      CAPTURE(k);
      CHECK(same_bits(one[k], several[k]));
    }
  }
}

enum class Batch { any_size, same_size };

/// f treats every sample of x on its own: its result and its gradient have the same bits beside
/// neighbours of NaN and, for batches of any size, alone.
template <class F, class S>
void check_samples(const std::string& name, F f, const deq::Tensor<deq::Cpu<S>>& x,
                   Batch batch = Batch::any_size) {
  CAPTURE(name);
  using T = TensorOf<S>;
  struct Result {
    T y, dx;
  };
  const auto run = [&](const T& input, const T& cotangent) {
    Recorded recorded(f, input);
    return Result{recorded.y(), recorded.vjp(cotangent).front()};
  };
  const T cotangent = random_tensor<S>(f(x).shape(), 8);
  const Result whole = run(x, cotangent);
  for (Index n = 0; n < x.extent(0); ++n) {
    CAPTURE(n);
    const auto row = [n](const T& t) { return t.rows(n, 1); };
    const auto beside_nan = [&](const T& t) {
      T all(t.shape(), static_cast<S>(not_a_number));
      std::copy_n(row(t).data(), row(t).size(), row(all).data());
      return all;
    };
    const Result beside = run(beside_nan(x), beside_nan(cotangent));
    CHECK(same_bits(row(beside.y), row(whole.y)));
    CHECK(same_bits(row(beside.dx), row(whole.dx)));
    if (batch == Batch::same_size) continue;
    const Result alone = run(row(x), row(cotangent));
    CHECK(same_bits(alone.y, row(whole.y)));
    CHECK(same_bits(alone.dx, row(whole.dx)));
  }
}

}  // namespace deq_test
