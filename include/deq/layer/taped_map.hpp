// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <vector>

#include <deq/backend/array.hpp>
#include <deq/core/map.hpp>
#include <deq/layer/arguments.hpp>
#include <deq/tape/record.hpp>

namespace deq {

/// Makes a LinearizableMap of a generic callable f(z, x..., theta...), for one block of samples:
/// called with tensors it just computes, called with variables it is recorded on a tape. NX and NP
/// are the extents of Inputs and Params.
template <Backend B, class F, std::size_t NX, std::size_t NP>
class TapedMap {
  using S = typename B::Scalar;

 public:
  using Backend = B;

  /// A block of samples: z has the shape of one sample's state; x are that block's rows. Of `batch`
  /// samples, if it is not the whole batch.
  void bind(F& f, const Shape& state, std::span<const Tensor<B>> x,
            std::span<const Tensor<B>> theta, Index batch = 0) {
    f_ = &f;
    batch_ = batch;
    state_ = state;
    // Aliases, since the blocks of other threads work on the same tensors.
    x_.clear();
    for (const Tensor<B>& xi : x) x_.push_back(xi.alias().frozen());
    theta_.clear();
    for (const Tensor<B>& p : theta) theta_.push_back(p.alias());
    gathered_for_.clear();
    at_.reset();
  }
  /// Lets go of every tensor, and of the recording.
  void release() {
    tape_.clear();
    at_.reset();
    z_ = output_ = {};
    value_ = {};
    for (auto* list : {&x_vars_, &theta_vars_, &wrt_}) list->clear();
    for (auto* list : {&x_, &theta_, &gathered_, &into_}) list->clear();
  }

  Index dim() const { return state_.size(); }

  void evaluate(Samples a, BatchView<const S> z, BatchView<S> out) {
    B::copy_bytes(out.data, value(a, z).data, static_cast<std::size_t>(out.size()) * sizeof(S));
  }
  /// The same where f has put it; stays until the next call, or until f is recorded. Operations on
  /// batches of a.count rows may leave out those that are holes in the set.
  BatchView<const S> value(Samples a, BatchView<const S> z) {
    [[maybe_unused]] const typename B::Rows rows(a);
    value_ = {};  // its memory may serve again
    value_ = call(as_tensor(z), std::span<const Tensor<B>>(inputs_of(a)),
                  std::span(std::as_const(theta_)));
    return {value_.data(), z.dim, z.count};
  }

  /// Copies what the last call has put there, if that was f of as many samples as `out` has.
  bool copy_last_value(BatchView<S> out) const {
    if (!value_ || value_.extent(0) != out.count) return false;
    B::copy_bytes(out.data, value_.data(), static_cast<std::size_t>(out.size()) * sizeof(S));
    return true;
  }

  /// J at z, for the whole block, valid until the next one, or until pull_back. f is recorded where
  /// it is first needed: the numbers of z have to stay until then.
  TapedMap& linearize(BatchView<const S> z) {
    tape_.clear();
    at_ = z;
    return *this;
  }

  /// Records n applications of f, one after the other, from z.
  TapedMap& record(BatchView<const S> z, int n) {
    at_.reset();
    value_ = {};  // its memory may serve the recording
    tape_.clear();
    x_vars_.clear();
    theta_vars_.clear();
    z_ = tape_.input(as_tensor(z));
    for (const Tensor<B>& x : x_) x_vars_.push_back(tape_.input(x));
    for (const Tensor<B>& p : theta_) theta_vars_.push_back(tape_.input(p));
    output_ = z_;
    for (int i = 0; i < n; ++i)
      output_ =
          call(output_, std::span(std::as_const(x_vars_)), std::span(std::as_const(theta_vars_)));
    return *this;
  }

  /// out_j = J^T w_j with respect to z. The tape holds the whole block; for fewer samples the
  /// others get the cotangent 0.
  void vjp(Samples a, BatchView<const S> w, BatchView<S> out) {
    record_if_needed();
    const Index count = z_.extent(0);
    if (a.count == count) return pull_back_to_z(w, out);
    const BatchView<S> all_w = all_w_.batch(w.dim, count), all_out = all_out_.batch(w.dim, count);
    B::fill(all_w.data, all_w.size(), 0);
    B::scatter(a, w, all_w);
    pull_back_to_z(all_w, all_out);
    B::gather(a, all_out, out);
  }

  /// x_grad[i] = (df/dx_i)^T w and theta_grad[i] = (df/dtheta_i)^T w, summed over the block; of the
  /// same shapes as bound. An empty tensor, or a list that ends early, is a gradient nobody wants.
  /// The last use of the recording, which is forgotten on the way.
  void pull_back(BatchView<const S> w, std::span<const Tensor<B>> x_grad,
                 std::span<const Tensor<B>> theta_grad) {
    record_if_needed();
    wrt_.clear();
    into_.clear();
    const auto want = [&](const std::vector<Var<B>>& vars, std::span<const Tensor<B>> grads) {
      for (std::size_t i = 0; i < grads.size(); ++i) {
        if (!grads[i]) continue;
        wrt_.push_back(vars[i]);
        into_.push_back(grads[i]);
      }
    };
    want(x_vars_, x_grad);
    want(theta_vars_, theta_grad);
    tape_.vjp_and_clear(output_, as_tensor(w), wrt_, into_);
  }

 private:
  template <class V>
  V call(const V& z, std::span<const V> x, std::span<const V> theta) {
    const Index count = z.shape()[0];
    V y;
    try {
      y = as_scalars(detail::call<NX, NP>(*f_, z, x, theta));
    } catch (const ShapeError& error) {
      if (count >= batch_) throw;
      throw ShapeError(message(error.what(), " (f was called for ", count, " of ", batch_,
                               " samples: whatever has a row a sample belongs into inputs(...))"));
    }
    check_shape(y.shape(), count);
    return y;
  }
  void record_if_needed() {
    if (at_) record(*at_, 1);
  }
  /// A batch as a tensor (count, state...), without a copy. Operations never write to operands.
  Tensor<B> as_tensor(BatchView<const S> z) const {
    Shape shape = state_;
    std::array<Index, Shape::max_rank> extents{z.count};
    for (Index i = 0; i < shape.rank(); ++i) extents[static_cast<std::size_t>(i + 1)] = state_[i];
    return Tensor<B>::view(
        const_cast<S*>(z.data),
        Shape(std::span<const Index>(extents.data(), static_cast<std::size_t>(state_.rank() + 1))));
  }
  void check_shape(const Shape& y, Index count) const {
    bool fits = y.rank() == state_.rank() + 1 && y[0] == count;
    for (Index i = 0; fits && i < state_.rank(); ++i) fits = y[i + 1] == state_[i];
    require<ShapeError>(fits, "f must return the shape of its state, ", count, " samples of ",
                        state_, "; it returned ", y);
  }
  /// The rows of x that belong to the active samples; copied only when the set has changed.
  const std::vector<Tensor<B>>& inputs_of(Samples a) {
    if (x_.empty() || a.count == x_[0].extent(0)) return x_;
    host_ids_.resize(static_cast<std::size_t>(a.count));
    B::download_bytes(host_ids_.data(), a.id, host_ids_.size() * sizeof(Index));
    if (host_ids_ != gathered_for_) {
      gathered_.clear();
      for (const Tensor<B>& x : x_) {
        Shape shape = x.shape();
        shape[0] = a.count;
        const Tensor<B> rows(shape);
        B::gather(a, x.batch(), rows.batch());
        gathered_.push_back(rows.frozen());
      }
      std::swap(gathered_for_, host_ids_);
    }
    return gathered_;
  }
  void pull_back_to_z(BatchView<const S> w, BatchView<S> out) {
    const Tensor<B> into = as_tensor(out);
    tape_.vjp(output_, as_tensor(w), std::span(&z_, 1), std::span(&into, 1));
  }

  F* f_ = nullptr;
  Index batch_ = 0;
  Shape state_;
  std::vector<Tensor<B>> x_, theta_, gathered_;
  std::vector<Index> gathered_for_, host_ids_;
  Tensor<B> value_;
  Tape<B> tape_;
  std::optional<BatchView<const S>> at_;  ///< where f is yet to be recorded, if anywhere
  Var<B> z_, output_;
  std::vector<Var<B>> x_vars_, theta_vars_, wrt_;
  std::vector<Tensor<B>> into_;
  Array<B> all_w_, all_out_;
};

}  // namespace deq
