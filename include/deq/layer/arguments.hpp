// SPDX-License-Identifier: MIT
// What f is called with beside z: per-sample inputs x and shared parameters theta.
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <span>
#include <tuple>
#include <type_traits>
#include <utility>

#include <deq/tape/tape.hpp>

namespace deq {

/// Per-sample inputs of f: tensors whose first dimension counts the samples. `inputs(x, y)` is
/// passed to f as two arguments; `inputs(span)`, any number of them, as one span.
template <TensorLike T, std::size_t N>
struct Inputs {
  std::conditional_t<N == std::dynamic_extent, std::span<const T>, std::array<T, N>> list;
  static constexpr std::size_t extent = N;
};
/// Parameters of f, shared by all samples.
template <TensorLike T, std::size_t N>
struct Params {
  std::conditional_t<N == std::dynamic_extent, std::span<const T>, std::array<T, N>> list;
  static constexpr std::size_t extent = N;
};

template <TensorLike T, std::convertible_to<T>... Ts>
Inputs<T, 1 + sizeof...(Ts)> inputs(const T& first, const Ts&... rest) {
  return {{first, rest...}};
}
template <TensorLike T>
Inputs<T, std::dynamic_extent> inputs(std::span<const T> list) {
  return {list};
}
template <TensorLike T, std::convertible_to<T>... Ts>
Params<T, 1 + sizeof...(Ts)> params(const T& first, const Ts&... rest) {
  return {{first, rest...}};
}
template <TensorLike T>
Params<T, std::dynamic_extent> params(std::span<const T> list) {
  return {list};
}
/// An f without inputs, without parameters.
template <TensorLike T>
Inputs<T, 0> no_inputs() {
  return {};
}
template <TensorLike T>
Params<T, 0> no_params() {
  return {};
}

namespace detail {

/// Inputs or Params of a list whose length is only known to fit.
template <class List>
List from_span(auto list) {
  List out{};
  if constexpr (List::extent == std::dynamic_extent)
    out.list = list;
  else
    std::copy(list.begin(), list.end(), out.list.begin());
  return out;
}

/// A list as a tuple of arguments: its N elements, or the span itself if N is dynamic.
template <std::size_t N, class V, class Call>
decltype(auto) spread(std::span<const V> list, Call&& call) {
  if constexpr (N == std::dynamic_extent)
    return call(list);
  else
    return [&]<std::size_t... I>(std::index_sequence<I...>)->decltype(auto) {
      return call(list[I]...);
    }
  (std::make_index_sequence<N>{});
}

/// f(z, x..., theta...), each list spread out or as a span.
template <std::size_t NX, std::size_t NP, class F, class V>
V call(F& f, const V& z, std::span<const V> x, std::span<const V> theta) {
  return spread<NX>(x, [&](const auto&... xs) -> V {
    return spread<NP>(theta, [&](const auto&... ps) -> V { return f(z, xs..., ps...); });
  });
}

/// What a list of N tensors or variables V becomes as arguments of f (see `spread`).
template <std::size_t N, class V>
auto arguments_of() {
  if constexpr (N == std::dynamic_extent)
    return std::tuple<std::span<const V>>();
  else
    return std::tuple_cat(std::array<V, N>());
}
template <class F, class V, class Arguments>
inline constexpr bool returns = false;
template <class F, class V, class... A>
inline constexpr bool returns<F, V, std::tuple<A...>> = requires(F& f, const A&... a) {
  requires std::same_as<std::remove_cvref_t<decltype(f(a...))>, V>;
};
/// f(z, x..., theta...) can be called with tensors or variables V, and returns one.
template <class F, class V, std::size_t NX, std::size_t NP>
inline constexpr bool callable = returns<
    F, V, decltype(std::tuple_cat(std::tuple<V>(), arguments_of<NX, V>(), arguments_of<NP, V>()))>;

}  // namespace detail

}  // namespace deq
