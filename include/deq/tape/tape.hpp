// SPDX-License-Identifier: MIT
// Reverse-mode differentiation of tensor operations. Nodes in the order of creation, one reverse
// sweep, one vector-Jacobian product an operation. Knows nothing of solvers.
#pragma once

#include <array>
#include <concepts>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <deq/tape/tensor.hpp>

namespace deq {

template <class B>
class Tape;

/// A value that a tape has seen: what a recorded computation calculates with. A Var without a tape
/// is a constant.
template <class B>
class Var {
 public:
  using Backend = B;

  Var() = default;
  Var(Tensor<B> value) : value_(std::move(value)) {}

  const Tensor<B>& value() const { return value_; }
  const Shape& shape() const { return value_.shape(); }
  Index extent(Index i) const { return value_.extent(i); }
  Tape<B>* tape() const { return tape_; }
  Index id() const { return id_; }

 private:
  friend class Tape<B>;
  Var(Tensor<B> value, Tape<B>* tape, Index id) : value_(std::move(value)), tape_(tape), id_(id) {}

  Tensor<B> value_;
  Tape<B>* tape_ = nullptr;
  Index id_ = -1;
};

namespace detail {
template <class T>
struct TensorTraits {
  static constexpr bool tensor = false, var = false;
};
template <class B>
struct TensorTraits<Tensor<B>> {
  static constexpr bool tensor = true, var = false;
};
template <class B>
struct TensorTraits<Var<B>> {
  static constexpr bool tensor = false, var = true;
};
}  // namespace detail

/// What operations accept: a Tensor (the operation just computes) or a Var (it records as well).
template <class T>
concept TensorLike = detail::TensorTraits<T>::tensor || detail::TensorTraits<T>::var;

template <TensorLike T>
inline constexpr bool is_var = detail::TensorTraits<T>::var;

template <class B>
const Tensor<B>& value(const Tensor<B>& x) {
  return x;
}
template <class B>
const Tensor<B>& value(const Var<B>& x) {
  return x.value();
}

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

/// The cotangent of one node during a reverse sweep.
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
  struct Target {
    typename B::Scalar* data;
    bool accumulate;  ///< add to what the memory holds; otherwise overwrite it
  };

  Sink() = default;
  Sink(detail::Slot<B>* slot, const Shape* shape) : slot_(slot), shape_(shape) {}

  /// False: nobody asked for this cotangent, do not compute it.
  explicit operator bool() const { return slot_ != nullptr; }
  const Shape& shape() const { return *shape_; }

  /// The memory to write to. Asked for once by each operation that does write, which then writes
  /// every element, and before it asks another sink: two inputs may be the same variable.
  Target target() const {
    if (!slot_->tensor)
      slot_->tensor = Tensor<B>(*shape_);
    else if (!slot_->pinned && !slot_->tensor.unique())
      slot_->tensor = slot_->tensor.clone();
    return {slot_->tensor.data(), std::exchange(slot_->written, true)};
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
    if (!slot_->written && !slot_->pinned) {
      slot_->tensor = cotangent.reshaped(*shape_);
      slot_->written = true;
      return;
    }
    const auto [out, accumulate] = target();
    if (accumulate)
      elementwise(B{}, cotangent.size(), std::plus<S>{}, out, out, cotangent.data());
    else
      B::copy_bytes(out, cotangent.data(), static_cast<std::size_t>(cotangent.size()) * sizeof(S));
  }

 private:
  detail::Slot<B>* slot_ = nullptr;
  const Shape* shape_ = nullptr;
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
/// its output sometimes only, has saves_input(i) or needs_output() as well.
template <class Op, class B>
concept Operation = requires(const Op& op, const Reverse<B>& reverse) {
  { Op::saves_inputs } -> std::convertible_to<bool>;
  { Op::saves_output } -> std::convertible_to<bool>;
  op.vjp(reverse);
};

/// Records operations, and computes vector-Jacobian products of what it has recorded, any number of
/// times. One thread at a time. Memory comes from pools: recording the same computation again,
/// after clear(), allocates nothing.
template <class B>
class Tape {
 public:
  Tape() = default;
  Tape(Tape&&) noexcept = delete;
  Tape& operator=(Tape&&) = delete;

  /// A leaf: a value with respect to which derivatives can be asked for.
  Var<B> input(Tensor<B> value) {
    nodes_.push_back({value.shape(), nullptr});
    return {std::move(value), this, size() - 1};
  }

  /// Number of nodes, leaves included.
  Index size() const { return static_cast<Index>(nodes_.size()); }

  /// Forgets everything recorded; the memory stays with the pools. Vars made before are void.
  void clear() { nodes_.clear(); }

  /// gradients[i] (+)= (d output / d wrt[i])^T cotangent, for one output. Overwrites the gradients
  /// unless `accumulate`, for which every wrt[i] has to be a leaf. Work is pruned to what `wrt`
  /// needs. Cost: about one to two evaluations of what lies between wrt and output.
  void vjp(const Var<B>& output, const Tensor<B>& cotangent, std::span<const Var<B>> wrt,
           std::span<const Tensor<B>> gradients, bool accumulate = false) {
    reverse(output, cotangent, wrt, gradients, accumulate, false);
  }
  /// The same for the last time: every operation is forgotten as soon as its own VJP is done, so
  /// that what it had saved makes room for the cotangents; in the end the tape is clear.
  void vjp_and_clear(const Var<B>& output, const Tensor<B>& cotangent, std::span<const Var<B>> wrt,
                     std::span<const Tensor<B>> gradients, bool accumulate = false) {
    reverse(output, cotangent, wrt, gradients, accumulate, true);
    clear();
  }

  /// Appends y = op(xs...), already computed. For `record`, below.
  template <class Op>
  Var<B> append(Op op, Tensor<B> y, std::span<const Var<B>> xs) {
    using Entry = RecordOf<Op>;
    void* place = HostPool::instance().acquire(sizeof(Entry));
    nodes_.push_back({y.shape(), RecordPtr(new (place) Entry(std::move(op), y, xs))});
    return {std::move(y), this, size() - 1};
  }

 private:
  void reverse(const Var<B>& output, const Tensor<B>& cotangent, std::span<const Var<B>> wrt,
               std::span<const Tensor<B>> gradients, bool accumulate, bool forget) {
    require(wrt.size() == gradients.size(), "Tape::vjp: ", wrt.size(), " variables but ",
            gradients.size(), " gradients");
    require<ShapeError>(cotangent.shape() == output.shape(), "Tape::vjp: the cotangent has shape ",
                        cotangent.shape(), ", the output ", output.shape());
    require(!output.tape() || (output.tape() == this && output.id() < size()),
            "Tape::vjp: the output is on another tape, or no longer on this one");
    const std::size_t n = nodes_.size();
    slots_.assign(n, {});
    needed_.assign(n, 0);
    for (std::size_t i = 0; i < wrt.size(); ++i) pin(wrt[i], gradients[i], accumulate);
    if (output.tape() == this) {
      for (std::size_t id = 0; id < n; ++id)
        for (const Index input : inputs(id))
          if (input >= 0 && needed_[static_cast<std::size_t>(input)]) needed_[id] = 1;
      const auto last = static_cast<std::size_t>(output.id());
      if (needed_[last]) Sink<B>(&slots_[last], &nodes_[last].shape).add(cotangent);
      for (std::size_t id = n; id-- > 0;) {
        if (id <= last && needed_[id] && slots_[id].written && nodes_[id].record) sweep(id, forget);
        if (forget) nodes_[id].record = nullptr;
      }
    }
    for (const Var<B>& x : wrt) {
      const detail::Slot<B>& slot = slots_[static_cast<std::size_t>(x.id())];
      if (!slot.written) B::fill(slot.tensor.data(), slot.tensor.size(), 0);
    }
    slots_.clear();
  }

  struct Record {
    virtual ~Record() = default;
    virtual void vjp(const Tensor<B>& cotangent, std::span<const Sink<B>> grad,
                     bool cotangent_is_free, bool for_the_last_time) const = 0;
    virtual std::size_t bytes() const = 0;
    PoolVector<Index> inputs;  ///< node ids; -1 for a constant
  };
  struct DeleteRecord {
    void operator()(Record* record) const noexcept {
      const std::size_t bytes = record->bytes();
      record->~Record();
      HostPool::instance().release(record, bytes);
    }
  };
  using RecordPtr = std::unique_ptr<Record, DeleteRecord>;

  template <class Op>
  struct RecordOf final : Record {
    static_assert(Operation<Op, B>,
                  "deq: an operation needs saves_inputs, saves_output and vjp(Reverse)");

    RecordOf(Op operation, const Tensor<B>& y, std::span<const Var<B>> xs)
        : op(std::move(operation)), saved_inputs(xs.size()) {
      for (const Var<B>& x : xs) this->inputs.push_back(x.id());
      if constexpr (Op::saves_inputs)
        for (std::size_t i = 0; i < xs.size(); ++i)
          if (saves(i)) saved_inputs[i] = xs[i].value();
      if constexpr (Op::saves_output)
        if (needs_output()) saved_output = y;
    }
    void vjp(const Tensor<B>& cotangent, std::span<const Sink<B>> grad, bool cotangent_is_free,
             bool for_the_last_time) const override {
      op.vjp(Reverse<B>{cotangent, saved_output, saved_inputs, grad, cotangent_is_free,
                        for_the_last_time});
    }
    bool saves(std::size_t i) const {
      if constexpr (requires { op.saves_input(i); })
        return op.saves_input(i);
      else
        return true;
    }
    bool needs_output() const {
      if constexpr (requires { op.needs_output(); })
        return op.needs_output();
      else
        return true;
    }
    std::size_t bytes() const override { return sizeof(RecordOf); }

    Op op;
    PoolVector<Tensor<B>> saved_inputs;
    Tensor<B> saved_output;
  };

  struct Node {
    Shape shape;
    RecordPtr record;  ///< null for a leaf
  };

  std::span<const Index> inputs(std::size_t id) const {
    return nodes_[id].record ? std::span<const Index>(nodes_[id].record->inputs)
                             : std::span<const Index>();
  }

  void pin(const Var<B>& x, const Tensor<B>& gradient, bool accumulate) {
    require(x.tape() == this && x.id() < size(), "Tape::vjp: a variable is not on this tape");
    require<ShapeError>(gradient.shape() == x.shape(), "Tape::vjp: the gradient has shape ",
                        gradient.shape(), ", its variable ", x.shape());
    const auto id = static_cast<std::size_t>(x.id());
    require(!needed_[id], "Tape::vjp: a variable is asked for twice");
    // What the memory of an intermediate value held before would be swept on to its inputs.
    require(!accumulate || !nodes_[id].record, "Tape::vjp: accumulates into leaves only");
    slots_[id] = {gradient, accumulate, true};
    needed_[id] = 1;
  }

  /// Hands the cotangent of one node on to its inputs, and lets go of it.
  void sweep(std::size_t id, bool for_the_last_time) {
    sinks_.clear();
    bool wanted = false;  // else the cotangent of the node itself is what was asked for
    for (const Index input : inputs(id)) {
      const auto i = static_cast<std::size_t>(input);
      sinks_.push_back(input >= 0 && needed_[i] ? Sink<B>(&slots_[i], &nodes_[i].shape)
                                                : Sink<B>());
      if (sinks_.back()) wanted = true;
    }
    detail::Slot<B>& slot = slots_[id];
    if (wanted)
      nodes_[id].record->vjp(slot.tensor, sinks_, !slot.pinned && slot.tensor.unique(),
                             for_the_last_time);
    if (!slot.pinned) slot.tensor = {};
  }

  std::vector<Node> nodes_;
  std::vector<detail::Slot<B>> slots_;  ///< scratch of vjp
  std::vector<char> needed_;            ///< scratch of vjp
  std::vector<Sink<B>> sinks_;          ///< scratch of vjp
};

namespace detail {
template <class B>
Tape<B>* common_tape(std::span<const Var<B>> xs) {
  Tape<B>* tape = nullptr;
  for (const Var<B>& x : xs) {
    if (!x.tape()) continue;
    require(!tape || tape == x.tape(), "an operation mixes variables of two tapes");
    tape = x.tape();
  }
  return tape;
}
}  // namespace detail

/// y = op(xs...): computes if every x is a Tensor; if one is a Var, records as well. Which of the
/// two is decided at compile time.
template <class Op, TensorLike X, TensorLike... Xs>
auto record(Op op, const X& x, const Xs&... xs) {
  using B = typename X::Backend;
  static_assert((std::same_as<typename Xs::Backend, B> && ...),
                "deq: an operation mixes tensors of two backends or scalars");
  Tensor<B> y = op.forward(value(x), value(xs)...);
  if constexpr (is_var<X> || (is_var<Xs> || ...)) {
    const std::array<Var<B>, 1 + sizeof...(Xs)> inputs{Var<B>(x), Var<B>(xs)...};
    Tape<B>* tape = detail::common_tape<B>(inputs);
    return tape ? tape->append(std::move(op), std::move(y), std::span<const Var<B>>(inputs))
                : Var<B>(std::move(y));
  } else {
    return y;
  }
}

/// The same for an operation on a list of any length: op.forward(span of tensors).
template <class Op, TensorLike X>
X record_list(Op op, std::span<const X> xs) {
  using B = typename X::Backend;
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

}  // namespace deq
