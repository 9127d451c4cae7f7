// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <ranges>
#include <span>

#include <deq/backend/geometry.hpp>
#include <deq/tape/record.hpp>

namespace deq {

/// The same numbers in another shape; shares memory with its input.
template <class B>
struct Reshape {
  static constexpr bool saves_inputs = false, saves_output = false;
  Shape shape;

  Tensor<B> forward(const Tensor<B>& x) const { return x.reshaped(shape); }
  void vjp(const Reverse<B>& r) const {
    if (r.grad[0]) r.grad[0].add(r.cotangent);
  }
};

/// x in a shape of the same size. Costs nothing.
template <TensorLike X>
auto reshape(const X& x, const Shape& shape) {
  return record(Reshape<typename X::Backend>{shape}, x);
}

/// (N, ...) as (N, D): one vector a sample.
template <TensorLike X>
auto flatten(const X& x) {
  const Shape& shape = x.shape();
  require<ShapeError>(shape.rank() > 0, "flatten: needs a dimension of samples, got ", shape);
  return reshape(x, {shape[0], shape.product(1, shape.rank())});
}

namespace detail {
/// How the part [first, first + n) of an axis lies in a tensor: strips, and where the first one is.
struct PartOfAxis {
  Index count, length, stride, offset;
  PartOfAxis(const Shape& whole, Index axis, Index first, Index n)
      : count(whole.product(0, axis)),
        length(n * whole.product(axis + 1, whole.rank())),
        stride(whole.product(axis, whole.rank())),
        offset(first * whole.product(axis + 1, whole.rank())) {}
};
}  // namespace detail

/// The part [first, first + n) of an axis.
template <class B>
struct Slice {
  static constexpr bool saves_inputs = false, saves_output = false;
  Index axis, first, n;

  Tensor<B> forward(const Tensor<B>& x) const {
    const Shape& whole = x.shape();
    require<ShapeError>(axis >= 0 && axis < whole.rank(), "slice: no axis ", axis, " in shape ",
                        whole);
    require<ShapeError>(first >= 0 && n >= 0 && first + n <= whole[axis], "slice: [", first, ", ",
                        first + n, ") is not within axis ", axis, " of shape ", whole);
    Shape shape = whole;
    shape[axis] = n;
    const detail::PartOfAxis part(whole, axis, first, n);
    if (part.count == 1)
      return x.reshaped({x.size()}).rows(part.offset, part.length).reshaped(shape);
    Tensor<B> y(shape);
    copy_strips(B{}, StripGeometry{part.count, part.length, part.stride, part.length},
                x.data() + part.offset, y.data(), false);
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    if (!accumulate) B::fill(out, r.grad[0].shape().size(), 0);
    const detail::PartOfAxis part(r.grad[0].shape(), axis, first, n);
    copy_strips(B{}, StripGeometry{part.count, part.length, part.length, part.stride},
                r.cotangent.data(), out + part.offset, accumulate);
  }
};

/// The part [first, first + n) of dimension `axis`. Where it is one piece of x's memory, as along
/// axis 0, or of a single sample, it shares it.
template <TensorLike X>
auto slice(const X& x, Index axis, Index first, Index n) {
  return record(Slice<typename X::Backend>{axis, first, n}, x);
}

/// Tensors one after the other along an axis.
template <class B>
struct Concat {
  static constexpr bool saves_inputs = false, saves_output = false;
  Index axis;
  PoolVector<Index> extents{};  ///< of each input, along the axis

  Tensor<B> forward(std::span<const Tensor<B>> xs) {
    require<ShapeError>(!xs.empty(), "concat: needs at least one tensor");
    Shape shape = xs[0].shape();
    require<ShapeError>(axis >= 0 && axis < shape.rank(), "concat: no axis ", axis, " in shape ",
                        shape);
    shape[axis] = 0;
    for (const Tensor<B>& x : xs) {
      Shape other = x.shape();
      const bool same_rank = other.rank() == shape.rank();
      if (same_rank) other[axis] = shape[axis];
      require<ShapeError>(same_rank && other == shape, "concat: ", x.shape(), " does not fit ",
                          xs[0].shape(), " along axis ", axis);
      extents.push_back(x.extent(axis));
      shape[axis] += extents.back();
    }
    Tensor<B> y(shape);
    Index first = 0;
    for (const Tensor<B>& x : xs) {
      const detail::PartOfAxis part(shape, axis, first, x.extent(axis));
      copy_strips(B{}, StripGeometry{part.count, part.length, part.length, part.stride}, x.data(),
                  y.data() + part.offset, false);
      first += x.extent(axis);
    }
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    const Shape& whole = r.cotangent.shape();
    Index first = 0;
    for (std::size_t i = 0; i < r.grad.size(); ++i) {
      const Index n = extents[i];
      if (r.grad[i]) {
        const detail::PartOfAxis part(whole, axis, first, n);
        const auto [out, accumulate] = r.grad[i].target();
        copy_strips(B{}, StripGeometry{part.count, part.length, part.stride, part.length},
                    r.cotangent.data() + part.offset, out, accumulate);
      }
      first += n;
    }
  }
};

/// Tensors one after the other along dimension `axis`; all other extents are the same. Takes any
/// contiguous list: a span, a vector.
template <std::ranges::contiguous_range List>
  requires TensorLike<std::ranges::range_value_t<List>>
auto concat(Index axis, const List& list) {
  using X = std::ranges::range_value_t<List>;
  return record_list(Concat<typename X::Backend>{axis}, std::span<const X>(list));
}
/// The same for tensors and variables in any mixture.
template <TensorLike X, TensorLike... Xs>
auto concat(Index axis, const X& x, const Xs&... xs) {
  using B = typename X::Backend;
  using Common = std::conditional_t<is_var<X> || (is_var<Xs> || ...), Var<B>, Tensor<B>>;
  return concat(axis, std::array<Common, 1 + sizeof...(Xs)>{Common(x), Common(xs)...});
}

/// The transpose of a matrix.
template <class B>
struct Transpose {
  static constexpr bool saves_inputs = false, saves_output = false;

  Tensor<B> forward(const Tensor<B>& x) const {
    require<ShapeError>(x.shape().rank() == 2, "transpose: needs a matrix, got shape ", x.shape());
    Tensor<B> y({x.extent(1), x.extent(0)});
    transpose_matrix(B{}, x.extent(0), x.extent(1), x.data(), y.data(), false);
    return y;
  }
  void vjp(const Reverse<B>& r) const {
    if (!r.grad[0]) return;
    const auto [out, accumulate] = r.grad[0].target();
    transpose_matrix(B{}, r.cotangent.extent(0), r.cotangent.extent(1), r.cotangent.data(), out,
                     accumulate);
  }
};

/// (n, m) of (m, n).
template <TensorLike X>
auto transpose(const X& x) {
  return record(Transpose<typename X::Backend>{}, x);
}

}  // namespace deq
