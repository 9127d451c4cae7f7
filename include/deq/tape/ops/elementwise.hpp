// SPDX-License-Identifier: MIT
// y_i = f(x_i). One operation for all of them: a function object says its value and its derivative.
#pragma once

#include <cmath>
#include <numbers>
#include <type_traits>

#include <deq/tape/record.hpp>

namespace deq {

namespace detail {

/// What the derivative of an elementwise function is computed from.
enum class Keeps { nothing, input, output };

struct Relu {
  static constexpr Keeps keeps = Keeps::output;
  // Written so that NaN stays NaN: a state that is no longer finite must be seen.
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return x < 0 ? S(0) : x;
  }
  // A choice between the two, which becomes one masked instruction; a factor of 1 or 0 would not.
  template <class S>
  DEQ_HOST_DEVICE S pull_back(S cotangent, S y) const {
    return y > 0 ? cotangent : S(0);
  }
};
struct Tanh {
  static constexpr Keeps keeps = Keeps::output;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::tanh(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S y) const {
    return 1 - y * y;
  }
};
struct Sigmoid {
  static constexpr Keeps keeps = Keeps::output;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return 1 / (1 + std::exp(-x));
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S y) const {
    return y * (1 - y);
  }
};
struct Exp {
  static constexpr Keeps keeps = Keeps::output;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::exp(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S y) const {
    return y;
  }
};
struct Log {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::log(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    return 1 / x;
  }
};
struct Gelu {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE static S normal_cdf(S x) {
    return (1 + std::erf(x / std::numbers::sqrt2_v<S>)) / 2;
  }
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return x * normal_cdf(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    constexpr S peak = std::numbers::inv_sqrtpi_v<S> / std::numbers::sqrt2_v<S>;
    return normal_cdf(x) + x * peak * std::exp(-x * x / 2);
  }
};
struct Softplus {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return (x > 0 ? x : S(0)) + std::log1p(std::exp(-std::abs(x)));
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    return Sigmoid{}(x);
  }
};
struct Sine {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::sin(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    return std::cos(x);
  }
};
struct Cosine {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::cos(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    return -std::sin(x);
  }
};
struct Square {
  static constexpr Keeps keeps = Keeps::input;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return x * x;
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S x) const {
    return 2 * x;
  }
};
struct SquareRoot {
  static constexpr Keeps keeps = Keeps::output;
  template <class S>
  DEQ_HOST_DEVICE S operator()(S x) const {
    return std::sqrt(x);
  }
  template <class S>
  DEQ_HOST_DEVICE S derivative(S y) const {
    return 1 / (2 * y);
  }
};
template <class S>
struct Times {
  static constexpr Keeps keeps = Keeps::nothing;
  S factor;
  DEQ_HOST_DEVICE S operator()(S x) const { return factor * x; }
  DEQ_HOST_DEVICE S derivative(S) const { return factor; }
};
template <class S>
struct Plus {
  static constexpr Keeps keeps = Keeps::nothing;
  S term;
  DEQ_HOST_DEVICE S operator()(S x) const { return x + term; }
  DEQ_HOST_DEVICE S derivative(S) const { return S(1); }
};
/// numerator / x
template <class S>
struct Quotient {
  static constexpr Keeps keeps = Keeps::input;
  S numerator;
  DEQ_HOST_DEVICE S operator()(S x) const { return numerator / x; }
  DEQ_HOST_DEVICE S derivative(S x) const { return -numerator / (x * x); }
};

/// f' times the cotangent, with f' from the number that F keeps.
template <class F>
struct PullBack {
  F f{};
  template <class S>
  DEQ_HOST_DEVICE S operator()(S cotangent, S kept) const {
    if constexpr (requires { f.pull_back(cotangent, kept); })
      return f.pull_back(cotangent, kept);
    else
      return cotangent * f.derivative(kept);
  }
  template <class S>
  DEQ_HOST_DEVICE S operator()(S cotangent) const {
    return cotangent * f.derivative(S(0));
  }
};

}  // namespace detail

/// y_i = f(x_i); dl/dx_i = f'(x_i) dl/dy_i, with f' computed from what F::keeps.
template <class F, class B>
struct Elementwise {
  using S = typename B::Scalar;
  static constexpr bool saves_inputs = F::keeps == detail::Keeps::input;
  static constexpr bool saves_output = F::keeps == detail::Keeps::output;

  F f{};

  Tensor<B> forward(const Tensor<B>& x) const {
    Tensor<B> y(x.shape());
    elementwise(B{}, x.size(), f, y.data(), x.data());
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const S* c = r.cotangent.data();
    if constexpr (saves_inputs || saves_output) {
      const Tensor<B>& kept = saves_inputs ? r.input[0] : r.output;
      r.grad[0].write(detail::PullBack<F>{f}, c, kept.data());
    } else {
      r.grad[0].write(detail::PullBack<F>{f}, c);
    }
  }
};

namespace detail {
template <class F, TensorLike X>
auto elementwise_operation(F f, const X& x) {
  return record(Elementwise<F, typename X::Backend>{f}, x);
}
/// The numbers of X: where one is expected, a literal of any arithmetic type will do.
template <TensorLike X>
using ScalarOf = typename X::Backend::Scalar;
}  // namespace detail

/// max(x, 0); the derivative at 0 is 0.
template <TensorLike X>
auto relu(const X& x) {
  return detail::elementwise_operation(detail::Relu{}, x);
}
template <TensorLike X>
auto tanh(const X& x) {
  return detail::elementwise_operation(detail::Tanh{}, x);
}
/// 1 / (1 + exp(-x))
template <TensorLike X>
auto sigmoid(const X& x) {
  return detail::elementwise_operation(detail::Sigmoid{}, x);
}
template <TensorLike X>
auto exp(const X& x) {
  return detail::elementwise_operation(detail::Exp{}, x);
}
template <TensorLike X>
auto log(const X& x) {
  return detail::elementwise_operation(detail::Log{}, x);
}
/// x Phi(x), Phi the normal distribution function: the exact form, PyTorch's default.
template <TensorLike X>
auto gelu(const X& x) {
  return detail::elementwise_operation(detail::Gelu{}, x);
}
/// log(1 + exp(x)), without overflow.
template <TensorLike X>
auto softplus(const X& x) {
  return detail::elementwise_operation(detail::Softplus{}, x);
}
template <TensorLike X>
auto sin(const X& x) {
  return detail::elementwise_operation(detail::Sine{}, x);
}
template <TensorLike X>
auto cos(const X& x) {
  return detail::elementwise_operation(detail::Cosine{}, x);
}
template <TensorLike X>
auto square(const X& x) {
  return detail::elementwise_operation(detail::Square{}, x);
}
template <TensorLike X>
auto sqrt(const X& x) {
  return detail::elementwise_operation(detail::SquareRoot{}, x);
}

/// a x, for a number a.
template <TensorLike X>
auto scale(const X& x, std::type_identity_t<detail::ScalarOf<X>> a) {
  return detail::elementwise_operation(detail::Times<detail::ScalarOf<X>>{a}, x);
}
template <TensorLike X>
auto operator*(const X& x, std::type_identity_t<detail::ScalarOf<X>> a) {
  return scale(x, a);
}
template <TensorLike X>
auto operator*(std::type_identity_t<detail::ScalarOf<X>> a, const X& x) {
  return scale(x, a);
}
template <TensorLike X>
auto operator/(const X& x, std::type_identity_t<detail::ScalarOf<X>> a) {
  return scale(x, 1 / a);
}
template <TensorLike X>
auto operator/(std::type_identity_t<detail::ScalarOf<X>> a, const X& x) {
  return detail::elementwise_operation(detail::Quotient<detail::ScalarOf<X>>{a}, x);
}
template <TensorLike X>
auto operator+(const X& x, std::type_identity_t<detail::ScalarOf<X>> a) {
  return detail::elementwise_operation(detail::Plus<detail::ScalarOf<X>>{a}, x);
}
template <TensorLike X>
auto operator+(std::type_identity_t<detail::ScalarOf<X>> a, const X& x) {
  return x + a;
}
template <TensorLike X>
auto operator-(const X& x, std::type_identity_t<detail::ScalarOf<X>> a) {
  return x + (-a);
}
template <TensorLike X>
auto operator-(const X& x) {
  return scale(x, -1);
}
template <TensorLike X>
auto operator-(std::type_identity_t<detail::ScalarOf<X>> a, const X& x) {
  return -x + a;
}

}  // namespace deq
