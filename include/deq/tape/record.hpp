// SPDX-License-Identifier: MIT
// How operations are applied: computed, and recorded where one of their inputs is a variable of a
// tape; every input stored as the operation takes it.
#pragma once

#include <array>
#include <concepts>
#include <span>
#include <utility>

#include <deq/tape/tape.hpp>

namespace deq {

namespace detail {
template <class B>
Tape<B>* common_tape(std::span<const Var<B>> xs) {
  Tape<B>* tape = nullptr;
  for (const Var<B>& x : xs) {
    if (!x.tape()) continue;
    require(!tape || tape == x.tape(), "an operation mixes variables of two tapes");
    tape = x.tape();
    require(tape->holds(x), "an operation has a variable that its tape holds no longer");
  }
  return tape;
}

/// y = op(xs...), every x stored as the operation takes it.
template <class Op, TensorLike X, TensorLike... Xs>
auto record_taken(Op& op, const X& x, const Xs&... xs) {
  using B = typename X::Backend;
  Tensor<B> y = op.forward(value(x), value(xs)...);
  if constexpr (is_var<X> || (is_var<Xs> || ...)) {
    const std::array<Var<B>, 1 + sizeof...(Xs)> inputs{Var<B>(x), Var<B>(xs)...};
    Tape<B>* tape = common_tape<B>(inputs);
    return tape ? tape->append(std::move(op), std::move(y), std::span<const Var<B>>(inputs))
                : Var<B>(std::move(y));
  } else {
    return y;
  }
}

/// The same numbers, stored as images are (`compact`) or as scalars. Of a frozen tensor the image
/// is made once.
template <class B>
struct Store {
  static constexpr bool saves_inputs = false, saves_output = false;
  static constexpr int key = -1;  ///< of what a frozen tensor keeps
  bool compact;

  bool takes_image(std::size_t) const { return !compact; }
  Tensor<B> forward(const Tensor<B>& x) const {
    return x.derive(key, [&] { return stored(x, compact); });
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto all = StripGeometry::single(r.cotangent.size());
    if (compact) {
      const auto [out, accumulate] = r.grad[0].target();
      copy_strips(B{}, all, r.cotangent.image_data(), out, accumulate);
    } else {
      const auto [out, accumulate] = r.grad[0].image_target();
      copy_strips(B{}, all, r.cotangent.data(), out, accumulate);
    }
  }
};

/// x itself, if it is stored that way.
template <TensorLike X>
X stored_as(const X& x, bool compact) {
  if (!value(x) || value(x).compact() == compact) return x;
  Store<typename X::Backend> store{compact};
  return record_taken(store, x);
}
/// Input i of an operation, stored as it takes it.
template <class Op, TensorLike X>
X taken(const Op& op, std::size_t i, const X& x) {
  bool compact = false;
  if constexpr (requires { op.takes_image(i); }) compact = op.takes_image(i);
  return stored_as(x, compact);
}
}  // namespace detail

/// y = op(xs...): computes if every x is a Tensor; if one is a Var, records as well. Which of the
/// two is decided at compile time.
template <class Op, TensorLike X, TensorLike... Xs>
auto record(Op op, const X& x, const Xs&... xs) {
  using B = typename X::Backend;
  static_assert((std::same_as<typename Xs::Backend, B> && ...),
                "deq: an operation mixes tensors of two backends or scalars");
  if constexpr (compact_images<B>) {
    const auto from = [&]<std::size_t... i>(std::index_sequence<i...>) {
      return detail::record_taken(op, detail::taken(op, 0, x), detail::taken(op, i + 1, xs)...);
    };
    return from(std::index_sequence_for<Xs...>{});
  } else {
    return detail::record_taken(op, x, xs...);
  }
}

/// The same for an operation on a list of any length: op.forward(span of tensors).
template <class Op, TensorLike X>
X record_list(Op op, std::span<const X> xs) {
  using B = typename X::Backend;
  PoolVector<X> as_taken;
  if constexpr (compact_images<B>) {
    for (std::size_t i = 0; i < xs.size(); ++i) as_taken.push_back(detail::taken(op, i, xs[i]));
    xs = as_taken;
  }
  PoolVector<Tensor<B>> values;
  for (const X& x : xs) values.push_back(value(x));
  Tensor<B> y = op.forward(std::span<const Tensor<B>>(values));
  if constexpr (is_var<X>) {
    Tape<B>* tape = detail::common_tape<B>(xs);
    return tape ? tape->append(std::move(op), std::move(y), xs) : Var<B>(std::move(y));
  } else {
    return y;
  }
}

/// work(i), i < n, of which none uses what another computes: a device may do them at the same time.
/// That includes what is kept with a frozen tensor: no two of them pack the same weight. `x` is one
/// of the tensors or variables that they work on.
template <TensorLike X, class Work>
void side_by_side(const X& x, Index n, Work&& work) {
  if constexpr (is_var<X>)
    if (x.tape()) return x.tape()->side_by_side(n, work);
  X::Backend::side_by_side(n, work);
}

/// x stored as scalars: what leaves the operations on tensors.
template <TensorLike X>
X as_scalars(const X& x) {
  return detail::stored_as(x, false);
}
/// x stored as the backend stores images.
template <TensorLike X>
X as_image(const X& x) {
  return detail::stored_as(x, compact_images<typename X::Backend>);
}

}  // namespace deq
