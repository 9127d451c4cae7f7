// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <deq/backend/array.hpp>
#include <deq/backend/geometry.hpp>
#include <deq/core/config.hpp>
#include <deq/core/error.hpp>
#include <deq/nn/parameter.hpp>

namespace deq {

struct AdamOptions {
  double beta1 = 0.9;       ///< decay of the first moment, in [0, 1)
  double beta2 = 0.999;     ///< decay of the second moment, in [0, 1)
  double epsilon = 1e-8;    ///< added to the root of the second moment, > 0
  double weight_decay = 0;  ///< L2 penalty, added to the gradient, >= 0
};

/// Adam (Kingma and Ba, 2015) with the semantics of torch.optim.Adam. Step t = 1, 2, ... computes
///
///     g' = g + weight_decay theta
///     m <- beta1 m + (1 - beta1) g'
///     v <- beta2 v + (1 - beta2) g'^2
///     theta <- theta - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
///
/// The moments belong to the parameters by position: every call must bring the list that the
/// constructor saw. Their memory is two copies of the parameters; a step allocates nothing.
template <BackendMemory B>
class Adam {
 public:
  using Scalar = typename B::Scalar;

  /// Zero moments for each parameter. Throws InvalidArgument for options outside their domain.
  explicit Adam(std::span<const Parameter<B>> parameters, const AdamOptions& options = {})
      : options_(options) {
    const auto require_decay = [](const char* name, double beta) {
      require(beta >= 0 && beta < 1, "Adam: ", name, " must be in [0, 1), got ", beta);
    };
    require_decay("beta1", options.beta1);
    require_decay("beta2", options.beta2);
    require(options.epsilon > 0, "Adam: epsilon must be > 0, got ", options.epsilon);
    require(options.weight_decay >= 0, "Adam: weight_decay must be >= 0, got ",
            options.weight_decay);
    step_numbers_.resize(2);
    for (const Parameter<B>& p : parameters) {
      first_.emplace_back(p.value.shape(), Scalar(0));
      second_.emplace_back(p.value.shape(), Scalar(0));
    }
  }

  /// Changes every `value` in place by its `grad`: begin_step, then apply. Throws ShapeError if the
  /// list is not the constructor's, or a gradient has not the shape of its value.
  void step(std::span<const Parameter<B>> parameters, double learning_rate) {
    require_parameters(parameters);
    begin_step(learning_rate);
    apply(parameters);
  }
  /// The part of a step that is the host's: counts it, and tells the device its numbers.
  void begin_step(double learning_rate) {
    require(learning_rate >= 0, "Adam: the learning rate must be >= 0, got ", learning_rate);
    ++steps_;
    const auto t = static_cast<double>(steps_);
    const std::array<Scalar, 2> numbers{scalar(learning_rate / (1 - std::pow(options_.beta1, t))),
                                        scalar(std::sqrt(1 - std::pow(options_.beta2, t)))};
    B::upload_bytes(step_numbers_.data(), numbers.data(), sizeof numbers);
  }
  /// The part of a step that may be recorded (backend/cuda/graph.cuh).
  void apply(std::span<const Parameter<B>> parameters) {
    require_parameters(parameters);
    const AdamStep<Scalar> step{scalar(options_.weight_decay), scalar(1 - options_.beta1),
                                scalar(options_.beta2),        scalar(1 - options_.beta2),
                                scalar(options_.epsilon),      step_numbers_.data()};
    PoolVector<AdamTensor<Scalar>> list;
    for (std::size_t i = 0; i < parameters.size(); ++i)
      list.push_back({parameters[i].value.data(), parameters[i].grad.data(), first_[i].data(),
                      second_[i].data(), parameters[i].value.size()});
    adam_step(B{}, step, std::span<const AdamTensor<Scalar>>(list));
  }

  /// Steps taken so far, t.
  std::int64_t steps() const { return steps_; }
  /// m of parameter i, PyTorch's exp_avg.
  const Tensor<B>& first_moment(Index i) const { return first_[static_cast<std::size_t>(i)]; }
  /// v of parameter i, PyTorch's exp_avg_sq.
  const Tensor<B>& second_moment(Index i) const { return second_[static_cast<std::size_t>(i)]; }

  /// Continues from a checkpoint: copies the moments, one tensor a parameter. Throws ShapeError if
  /// they do not fit, and then changes nothing.
  void restore(std::int64_t steps, std::span<const Tensor<B>> first,
               std::span<const Tensor<B>> second) {
    require(steps >= 0, "Adam: the number of steps must be >= 0, got ", steps);
    const auto shape = [](const Tensor<B>& t) -> const Shape& { return t.shape(); };
    require_same_shapes("first moments", first, shape);
    require_same_shapes("second moments", second, shape);
    const auto copy = [](const Tensor<B>& from, const Tensor<B>& to) {
      B::copy_bytes(to.data(), from.data(), static_cast<std::size_t>(to.size()) * sizeof(Scalar));
    };
    for (std::size_t i = 0; i < first_.size(); ++i) {
      copy(first[i], first_[i]);
      copy(second[i], second_[i]);
    }
    steps_ = steps;
  }

 private:
  static Scalar scalar(double x) { return static_cast<Scalar>(x); }

  void require_parameters(std::span<const Parameter<B>> parameters) const {
    require_same_shapes("parameters", parameters,
                        [](const Parameter<B>& p) -> const Shape& { return p.value.shape(); });
    require_same_shapes("gradients", parameters,
                        [](const Parameter<B>& p) -> const Shape& { return p.grad.shape(); });
  }
  template <class Item, class ShapeOf>
  void require_same_shapes(const char* what, std::span<const Item> items, ShapeOf shape_of) const {
    require<ShapeError>(items.size() == first_.size(), "Adam: made for ", first_.size(),
                        " parameters, got ", items.size(), ' ', what);
    for (std::size_t i = 0; i < items.size(); ++i)
      require<ShapeError>(shape_of(items[i]) == first_[i].shape(), "Adam: ", what, ", entry ", i,
                          ": expected shape ", first_[i].shape(), ", got ", shape_of(items[i]));
  }

  AdamOptions options_;
  std::vector<Tensor<B>> first_, second_;
  Array<B> step_numbers_;
  std::int64_t steps_ = 0;
};

}  // namespace deq
