// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include <deq/layer/equilibrium_node.hpp>
#include <deq/model/mdeq.hpp>
#include <deq/nn/dropout.hpp>

namespace deq {

/// What one pass over a batch gave.
struct PassReport {
  double loss = 0;    ///< mean softmax cross-entropy, nats
  Index correct = 0;  ///< samples whose largest logit is their label's
  SolveReport solve;  ///< of the equilibrium (of the last step, if unrolled)
  AdjointReport adjoint;
};

/// An MDEQ with a way to solve and to differentiate it: the forward and backward pass of
/// MDEQ-SPEC.md, section 7. The weights stay with the Mdeq, so that several classifiers may share
/// them; `Unrolled` as the policy is the original's pre-training.
///
///     training     z from the solver, h = f(z), logits = head(h); batch statistics (`norm_mode`)
///     evaluation   logits = head(z); running statistics (unrolled: the same n applications)
template <Backend B, class Solver, BackwardPolicy Policy>
class MdeqClassifier {
  using S = typename B::Scalar;
  using Layer = Equilibrium<Solver, Policy, MdeqFunction>;
  using Solution = typename Layer::template Solution<B, std::dynamic_extent, std::dynamic_extent>;

 public:
  /// How training passes normalise; `evaluate` freezes the running statistics (fine-tuning).
  BatchNormMode norm_mode = BatchNormMode::train;

  explicit MdeqClassifier(Mdeq<B>& model, Solver solver = {}, Policy policy = {})
      : model_(model),
        train_layer_(model.function(true), solver, policy),
        plain_layer_(model.function(false), solver, policy) {}

  /// The layer of training passes with dropout masks, and the one of evaluation and of training
  /// passes without; solver, policy and schedule of each may be changed.
  Layer& layer() { return train_layer_; }
  Layer& evaluation_layer() { return plain_layer_; }

  /// Logits (N, classes) of images (N, 3, R, R), in evaluation. The bits of an image's do not
  /// depend on the other images.
  Tensor<B> logits(const Tensor<B>& images) {
    PoolVector<Tensor<B>> all = model_.values();
    for (Tensor<B>& value : all) value = value.frozen();
    const std::span<const Tensor<B>> values(all);
    const Tensor<B> x = model_.stem(images, values, BatchNormMode::evaluate);
    const PoolVector<Tensor<B>> theta = model_.layer_parameters(values);
    plain_layer_.solve(start(images.extent(0)), inputs(std::span<const Tensor<B>>(&x, 1)),
                       params(std::span<const Tensor<B>>(theta)), solution_);
    return model_.head(solution_.z, values, BatchNormMode::evaluate);
  }

  /// Loss and accuracy of a batch, in evaluation.
  PassReport evaluate(const Tensor<B>& images, std::span<const Index> labels) {
    labels_.assign(labels);
    const Tensor<B> l = logits(images);
    judge(l, softmax_cross_entropy(l, labels_), labels_);
    return report_;
  }

  /// One training pass: fills the gradients of the model's parameters. `masks` are the dropout
  /// masks, (N, C_i, 1, 1) for every branch; none is no dropout.
  PassReport train(const Tensor<B>& images, std::span<const Index> labels,
                   std::span<const Tensor<B>> masks = {}) {
    labels_.assign(labels);
    return train(images, labels_, masks);
  }
  /// The same with labels that the backend has already: may be recorded (backend/cuda/graph.cuh);
  /// then the report is that of the last launch, see last_report().
  PassReport train(const Tensor<B>& images, const Labels<B>& labels,
                   std::span<const Tensor<B>> masks = {}) {
    const auto branches = static_cast<std::size_t>(model_.config().branches());
    require(masks.empty() || masks.size() == branches, "MdeqClassifier: needs ", branches,
            " dropout masks or none, got ", masks.size());
    pass(masks.empty() ? plain_layer_ : train_layer_, images, labels, masks);
    return report_;
  }

  /// The state that the last pass ended with.
  const Solution& solution() const { return solution_; }
  /// What the last pass gave.
  const PassReport& last_report() const { return report_; }
  /// Logits of the last training pass.
  const Tensor<B>& last_logits() const { return logits_; }

 private:
  Tensor<B> start(Index count) const {
    return Tensor<B>({count, model_.config().state_size()}, S(0));
  }

  void pass(Layer& layer, const Tensor<B>& images, const Labels<B>& labels,
            std::span<const Tensor<B>> masks) {
    tape_.clear();
    all_.clear();
    for (const Parameter<B>& p : model_.parameters()) all_.push_back(tape_.input(p.value));
    const std::span<const Var<B>> all(all_);
    PoolVector<Var<B>> x{model_.stem(Var<B>(images), all, norm_mode)};
    x.insert(x.end(), masks.begin(), masks.end());
    const PoolVector<Var<B>> theta = model_.layer_parameters(all);
    Var<B> h =
        record_equilibrium(layer, start(images.extent(0)), inputs(std::span<const Var<B>>(x)),
                           params(std::span<const Var<B>>(theta)),
                           detail::unrolls<Policy> ? Output::state : Output::applied, solution_);
    const Var<B> l = model_.head(std::move(h), all, norm_mode);
    const Var<B> loss = softmax_cross_entropy(l, labels);

    PoolVector<Tensor<B>> gradients;
    for (const Parameter<B>& p : model_.parameters()) gradients.push_back(p.grad);
    tape_.vjp_and_clear(loss, Tensor<B>({}, S(1)), all_, gradients);
    logits_ = l.value();
    judge(logits_, loss.value(), labels);
    B::when_done([this] { report_.adjoint = solution_.adjoint_report; });
  }

  /// Loss, accuracy and the solver's report.
  void judge(const Tensor<B>& logits, const Tensor<B>& loss, const Labels<B>& labels) {
    B::when_downloaded(loss.data(), 1, [this](std::span<const S> value) {
      report_ = {};
      report_.loss = static_cast<double>(value[0]);
    });
    B::when_downloaded(logits.data(), logits.size(),
                       [this, labels, classes = logits.extent(1)](std::span<const S> all) {
                         auto row = all.begin();
                         for (const Index label : labels.host()) {
                           report_.correct += std::max_element(row, row + classes) - row == label;
                           row += classes;
                         }
                         report_.solve = solution_.report;
                       });
  }

  Mdeq<B>& model_;
  Layer train_layer_, plain_layer_;
  Solution solution_;
  Tape<B> tape_;
  PoolVector<Var<B>> all_;
  Tensor<B> logits_;
  Labels<B> labels_;
  PassReport report_;
};

}  // namespace deq
