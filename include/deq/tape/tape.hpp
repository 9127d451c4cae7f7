// SPDX-License-Identifier: MIT
// Reverse-mode differentiation of tensor operations. Nodes in the order of creation, one reverse
// sweep, one vector-Jacobian product an operation. Knows nothing of solvers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <deq/core/stamp.hpp>
#include <deq/tape/operation.hpp>

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
  Var(Tensor<B> value, Tape<B>* tape, Index id, std::uint64_t recording)
      : value_(std::move(value)), tape_(tape), id_(id), recording_(recording) {}

  Tensor<B> value_;
  Tape<B>* tape_ = nullptr;
  Index id_ = -1;
  std::uint64_t recording_ = 0;
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
    nodes_.push_back({value.shape(), value.compact(), nullptr});
    return var_of_last(std::move(value));
  }

  /// Number of nodes, leaves included.
  Index size() const { return static_cast<Index>(nodes_.size()); }

  /// True if x stands for a node of what is recorded now.
  bool holds(const Var<B>& x) const { return x.tape_ == this && x.recording_ == recording_; }

  /// Forgets everything recorded; the memory stays with the pools. Vars made before are void:
  /// whatever differentiates them, or records an operation on them, throws InvalidArgument.
  void clear() {
    recording_ = detail::fresh_stamp();
    nodes_.clear();
    sections_.clear();
    in_section_ = false;  // also after an exception
  }

  /// Records work(i), i < n, of which none uses what another computes. Where the backend is
  /// concurrent they are done, and later swept, side by side.
  template <class Work>
  void side_by_side(Index n, Work&& work) {
    if (!B::concurrent || in_section_) return B::side_by_side(n, work);
    Section section{nodes_.size(), {}, {}};
    in_section_ = true;
    const auto lane = [&](Index i) {
      work(i);
      section.ends.push_back(nodes_.size());
    };
    B::side_by_side(n, lane, section.lanes);
    in_section_ = false;
    if (nodes_.size() > section.begin) sections_.push_back(std::move(section));
  }

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
    nodes_.push_back({y.shape(), y.compact(), RecordPtr(new (place) Entry(std::move(op), y, xs))});
    return var_of_last(std::move(y));
  }

 private:
  Var<B> var_of_last(Tensor<B> value) { return {std::move(value), this, size() - 1, recording_}; }

  void reverse(const Var<B>& output, const Tensor<B>& cotangent, std::span<const Var<B>> wrt,
               std::span<const Tensor<B>> gradients, bool accumulate, bool forget) {
    require(wrt.size() == gradients.size(), "Tape::vjp: ", wrt.size(), " variables but ",
            gradients.size(), " gradients");
    require<ShapeError>(cotangent.shape() == output.shape(), "Tape::vjp: the cotangent has shape ",
                        cotangent.shape(), ", the output ", output.shape());
    require(!output.tape() || holds(output),
            "Tape::vjp: the output is on another tape, or no longer on this one");
    const std::size_t n = nodes_.size();
    slots_.assign(n, {});
    needed_.assign(n, 0);
    slots_of_lane_ = nullptr;  // also after an exception
    for (std::size_t i = 0; i < wrt.size(); ++i) pin(wrt[i], gradients[i], accumulate);
    if (output.tape() == this) {
      for (std::size_t id = 0; id < n; ++id)
        for (const Index input : inputs(id))
          if (input >= 0 && needed_[static_cast<std::size_t>(input)]) needed_[id] = 1;
      const auto last = static_cast<std::size_t>(output.id());
      if (needed_[last]) sink(output.id()).add(cotangent);
      std::size_t sections = sections_.size();
      for (std::size_t id = n; id > 0;) {
        if (sections > 0 && id == sections_[sections - 1].ends.back()) {
          Section& section = sections_[--sections];
          sweep_side_by_side(section, last, forget);
          id = section.begin;
        } else {
          sweep(--id, last, forget);
        }
      }
    }
    for (std::size_t i = 0; i < wrt.size(); ++i) {
      const detail::Slot<B>& slot = slots_[static_cast<std::size_t>(wrt[i].id())];
      const Index size = gradients[i].size();
      if (!slot.written)
        B::fill(gradients[i].data(), size, 0);
      else if (slot.tensor.compact())
        B::copy_bytes(gradients[i].data(), detail::stored(slot.tensor, false).data(),
                      static_cast<std::size_t>(size) * sizeof(typename B::Scalar));
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
    bool compact;      ///< stored as an image, and so is its cotangent
    RecordPtr record;  ///< null for a leaf
  };

  std::span<const Index> inputs(std::size_t id) const {
    return nodes_[id].record ? std::span<const Index>(nodes_[id].record->inputs)
                             : std::span<const Index>();
  }

  void pin(const Var<B>& x, const Tensor<B>& gradient, bool accumulate) {
    require(holds(x), "Tape::vjp: a variable is not on this tape, or no longer");
    require<ShapeError>(gradient.shape() == x.shape(), "Tape::vjp: the gradient has shape ",
                        gradient.shape(), ", its variable ", x.shape());
    const auto id = static_cast<std::size_t>(x.id());
    require(!needed_[id], "Tape::vjp: a variable is asked for twice");
    // What the memory of an intermediate value held before would be swept on to its inputs.
    require(!accumulate || !nodes_[id].record, "Tape::vjp: accumulates into leaves only");
    const bool compact = nodes_[id].compact;
    require(!accumulate || !compact, "Tape::vjp: an image accumulates no gradient");
    slots_[id] = {compact ? Tensor<B>::image(gradient.shape()) : gradient, accumulate, true};
    needed_[id] = 1;
  }

  /// Nodes that were recorded in lanes: [begin, ends[0]), [ends[0], ends[1]) ...
  struct Section {
    std::size_t begin;
    PoolVector<std::size_t> ends;
    typename B::Lanes lanes;
  };

  Sink<B> sink(Index id) {
    const auto i = static_cast<std::size_t>(id);
    detail::Slot<B>* slot = &slots_[i];
    if (slots_of_lane_ && i < reader_.size() && reader_[i] <= first_shared)
      slot = slots_of_lane_ + (first_shared - reader_[i]);
    return {slot, &nodes_[i].shape, nodes_[i].compact};
  }

  /// Sweeps the lanes of a section. What several of them have read gets a cotangent from each, in a
  /// slot of its own until all are done.
  void sweep_side_by_side(Section& section, std::size_t last, bool forget) {
    reader_.assign(section.begin, nobody);
    shared_.clear();
    const std::size_t lanes = section.ends.size();
    const auto begin_of = [&](std::size_t lane) {
      return lane == 0 ? section.begin : section.ends[lane - 1];
    };
    for (std::size_t lane = 0; lane < lanes; ++lane)
      for (std::size_t id = begin_of(lane); id < section.ends[lane]; ++id)
        for (const Index input : inputs(id)) {
          const auto i = static_cast<std::size_t>(input);
          if (input < 0 || i >= section.begin || !needed_[id] || !needed_[i]) continue;
          const auto own = static_cast<Index>(lane);
          if (reader_[i] == nobody) {
            reader_[i] = own;
          } else if (reader_[i] >= 0 && reader_[i] != own) {
            reader_[i] = first_shared - static_cast<Index>(shared_.size());
            shared_.push_back(input);
          }
        }
    // Whether memory may be written in place is asked of its handles. One that two lanes have stays
    // shared until both are done.
    PoolVector<Tensor<B>> held;
    for (std::size_t id = 0; id < section.ends.back(); ++id)
      if ((id >= section.begin || reader_[id] != nobody) && slots_[id].tensor &&
          !slots_[id].tensor.unique())
        held.push_back(slots_[id].tensor);
    std::vector<detail::Slot<B>> slots(lanes * shared_.size());
    const auto sweep_lane = [&](Index lane) {
      const auto i = static_cast<std::size_t>(lane);
      slots_of_lane_ = slots.data() + i * shared_.size();
      for (std::size_t id = section.ends[i]; id > begin_of(i);) sweep(--id, last, forget);
    };
    B::side_by_side(static_cast<Index>(lanes), sweep_lane, section.lanes);
    slots_of_lane_ = nullptr;
    for (std::size_t i = slots.size(); i-- > 0;) {  // the last lane first, as without lanes
      if (slots[i].written) sink(shared_[i % shared_.size()]).add(slots[i].tensor);
      slots[i] = {};
    }
  }

  /// Hands the cotangent of one node on to its inputs, if it has one, and lets go of it.
  void sweep(std::size_t id, std::size_t last, bool forget) {
    if (id <= last && needed_[id] && slots_[id].written && nodes_[id].record) hand_on(id, forget);
    if (forget) nodes_[id].record = nullptr;
  }
  void hand_on(std::size_t id, bool for_the_last_time) {
    sinks_.clear();
    bool wanted = false;  // else the cotangent of the node itself is what was asked for
    for (const Index input : inputs(id)) {
      const auto i = static_cast<std::size_t>(input);
      sinks_.push_back(input >= 0 && needed_[i] ? sink(input) : Sink<B>());
      if (sinks_.back()) wanted = true;
    }
    detail::Slot<B>& slot = slots_[id];
    if (wanted)
      nodes_[id].record->vjp(slot.tensor, sinks_, !slot.pinned && slot.tensor.unique(),
                             for_the_last_time);
    if (!slot.pinned) slot.tensor = {};
  }

  std::uint64_t recording_ = detail::fresh_stamp();  ///< what Vars of another one do not stand for
  std::vector<Node> nodes_;
  std::vector<Section> sections_;
  bool in_section_ = false;
  std::vector<detail::Slot<B>> slots_;  ///< scratch of vjp
  std::vector<char> needed_;            ///< scratch of vjp
  std::vector<Sink<B>> sinks_;          ///< scratch of vjp
  /// Scratch of sweep_side_by_side: the lane that reads a node before the section; first_shared
  /// less its place in shared_ if several do.
  static constexpr Index nobody = -1, first_shared = -2;
  std::vector<Index> reader_, shared_;
  detail::Slot<B>* slots_of_lane_ = nullptr;
};

}  // namespace deq
