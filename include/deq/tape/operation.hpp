// SPDX-License-Identifier: MIT
// What an operation of the tape is, and what its vector-Jacobian product is given.
#pragma once

#include <concepts>
#include <functional>
#include <span>
#include <utility>

#include <deq/backend/geometry.hpp>
#include <deq/tape/tensor.hpp>

namespace deq {

namespace detail {
/// sum + f(x...). Functions that kernels call have names and no closures, and what they call is
/// constexpr or DEQ_HOST_DEVICE, so that every compiler takes them on every device.
template <class Function>
struct Added {
  Function f;
  template <class S, class... X>
  DEQ_HOST_DEVICE S operator()(S sum, X... x) const {
    return sum + f(x...);
  }
};

/// The numbers of x, stored as images are or as scalars.
template <class B>
Tensor<B> stored(const Tensor<B>& x, bool compact) {
  if constexpr (compact_images<B>) {
    const auto all = StripGeometry::single(x.size());
    if (compact && !x.compact()) {
      const Tensor<B> y = Tensor<B>::image(x.shape());
      copy_strips(B{}, all, x.data(), y.image_data(), false);
      return y;
    }
    if (!compact && x.compact()) {
      const Tensor<B> y(x.shape());
      copy_strips(B{}, all, x.image_data(), y.data(), false);
      return y;
    }
  }
  return x;
}

/// The cotangent of one node during a reverse sweep, stored as its value is.
template <class B>
struct Slot {
  Tensor<B> tensor;
  bool written = false;  ///< holds a partial sum already
  bool pinned = false;   ///< the caller's memory: to be written, never to be replaced
};
}  // namespace detail

/// Where the VJP of an operation puts the cotangent of one input. Contributions of several
/// operations to the same input add up; the first one writes, so nothing is cleared beforehand.
template <class B>
class Sink {
 public:
  template <class T>
  struct TargetOf {
    T* data;
    bool accumulate;  ///< add to what the memory holds; otherwise overwrite it
  };
  using Target = TargetOf<typename B::Scalar>;
  using ImageTarget = TargetOf<ImageScalar<B>>;

  Sink() = default;
  Sink(detail::Slot<B>* slot, const Shape* shape, bool compact)
      : slot_(slot), shape_(shape), compact_(compact) {}

  /// False: nobody asked for this cotangent, do not compute it.
  explicit operator bool() const { return slot_ != nullptr; }
  const Shape& shape() const { return *shape_; }

  /// The memory to write to. Asked for once by each operation that does write, which then writes
  /// every element, and before it asks another sink: two inputs may be the same variable.
  Target target() const { return {memory().data(), std::exchange(slot_->written, true)}; }
  /// The same of an image.
  ImageTarget image_target() const {
    return {memory().image_data(), std::exchange(slot_->written, true)};
  }

  /// cotangent_i (+)= f(in_i...): what an elementwise operation does.
  template <class Function, class... In>
  void write(Function f, const In*... in) const {
    const auto [out, accumulate] = target();
    if (accumulate)
      elementwise(B{}, shape_->size(), detail::Added<Function>{f}, out, out, in...);
    else
      elementwise(B{}, shape_->size(), f, out, in...);
  }

  /// Adds a whole cotangent; the first one is kept as a handle, not copied.
  void add(const Tensor<B>& cotangent) const {
    using S = typename B::Scalar;
    const Tensor<B> c = detail::stored(cotangent, compact_);
    const Index n = c.size();
    if (!slot_->written && !slot_->pinned) {
      slot_->tensor = c.reshaped(*shape_);
      slot_->written = true;
      return;
    }
    if constexpr (compact_images<B>)
      if (compact_) {
        const auto [out, accumulate] = image_target();
        return copy_strips(B{}, StripGeometry::single(n), c.image_data(), out, accumulate);
      }
    const auto [out, accumulate] = target();
    if (accumulate)
      elementwise(B{}, n, std::plus<S>{}, out, out, c.data());
    else
      B::copy_bytes(out, c.data(), static_cast<std::size_t>(n) * sizeof(S));
  }

 private:
  const Tensor<B>& memory() const {
    Tensor<B>& tensor = slot_->tensor;
    if (!tensor)
      tensor = compact_ ? Tensor<B>::image(*shape_) : Tensor<B>(*shape_);
    else if (!slot_->pinned && !tensor.unique())
      tensor = tensor.clone();
    return tensor;
  }

  detail::Slot<B>* slot_ = nullptr;
  const Shape* shape_ = nullptr;
  bool compact_ = false;
};

/// What the VJP of an operation y = op(x_0, x_1, ...) is given.
template <class B>
struct Reverse {
  const Tensor<B>& cotangent;        ///< dl/dy
  const Tensor<B>& output;           ///< y; empty unless Op::saves_output, or if not needed
  std::span<const Tensor<B>> input;  ///< x_i; empty tensors unless Op::saves_inputs
  std::span<const Sink<B>> grad;     ///< where dl/dx_i goes
  /// Nobody else has the memory of the cotangent: the operation may write what it likes there.
  bool cotangent_is_free = false;
  /// The operation is forgotten after this: it may write over the members it has computed.
  bool for_the_last_time = false;
};

/// An operation of the tape. It is a value: attributes (a stride, a number of groups) are its
/// members, and so is whatever its forward pass computes that its VJP can use again (a mean, a
/// mask).
///
///     template <class B> struct Square {
///       using S = typename B::Scalar;
///       static constexpr bool saves_inputs = true, saves_output = false;
///       Tensor<B> forward(const Tensor<B>& x) {       // y; may set members
///         Tensor<B> y(x.shape());
///         elementwise(B{}, x.size(), [](S a) { return a * a; }, y.data(), x.data());
///         return y;
///       }
///       void vjp(const Reverse<B>& r) const {         // r.grad[i] += (dy/dx_i)^T r.cotangent
///         if (r.grad[0])
///           r.grad[0].write([](S c, S x) { return 2 * x * c; }, r.cotangent.data(),
///           r.input[0].data());
///       }
///     };
///     template <TensorLike X> auto square(const X& x) { return record(Square<typename
///     X::Backend>{}, x); }
///
/// `vjp` computes only the cotangents whose sink is wanted, and may be called any number of times
/// until it is for_the_last_time. Numbers are touched by kernels alone: functions found by
/// argument-dependent lookup on the backend's tag (elementwise above), whose CPU versions are in
/// backend/cpu/ and which any backend can overload. A kernel that is not elementwise asks the sink
/// for its target: the memory, and whether to add to it. y may be a handle to an input's memory (a
/// reshape); nothing ever writes to an operand. An operation that needs some of its inputs only, or
/// its output sometimes only, has saves_input(i) or needs_output() as well. One that reads images
/// as a backend stores them has takes_image(i): input i comes as image_data(), and its cotangent
/// goes to image_target(); everything else comes as scalars, however it was stored. A y that is an
/// image gets its cotangent as one.
template <class Op, class B>
concept Operation = requires(const Op& op, const Reverse<B>& reverse) {
  { Op::saves_inputs } -> std::convertible_to<bool>;
  { Op::saves_output } -> std::convertible_to<bool>;
  op.vjp(reverse);
};

}  // namespace deq
