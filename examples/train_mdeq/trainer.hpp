// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <deq/nn/adam.hpp>
#include <deq/nn/schedule.hpp>

#include "method.hpp"

namespace examples {

/// Sums over the images of an epoch.
struct Totals {
  double images = 0, loss = 0, correct = 0, iterations = 0, residual = 0;

  void add(const deq::PassReport& pass, deq::Index batch) {
    const auto n = static_cast<double>(batch);
    images += n;
    loss += n * pass.loss;
    correct += static_cast<double>(pass.correct);
    iterations += n * pass.solve.mean_iterations();
    residual += n * pass.solve.mean_relative();
  }
  double mean(double Totals::*sum) const { return this->*sum / images; }
};

/// A model in training. Its state is the weights, the running statistics, Adam's moments and the
/// number of steps taken; whatever is random follows from the seed and that number.
class Trainer {
 public:
  Trainer(const Options& options, const std::string& gradient, std::int64_t total_steps)
      : gradient_(gradient),
        seed_(options.seed),
        pretrain_steps_(options.recipe.pretrain_steps),
        schedule_(options.recipe.learning_rate, total_steps, lowest_rate(options)),
        model_(model_config(options), options.seed),
        adam_(model_.parameters(), {.weight_decay = options.recipe.weight_decay}),
        equilibrium_(make_method(gradient, options, model_)),
        unrolled_(make_method("unrolled", options, model_)) {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// One step of Adam. Throws deq::Error if the loss is no longer a number.
  deq::PassReport step(const Batch& batch) {
    const std::vector<Tensor> dropout = masks(batch);
    const deq::PassReport pass = method().train(batch, dropout);
    deq::require<deq::Error>(std::isfinite(pass.loss), gradient_, ": the loss is ", pass.loss,
                             " at step ", steps(), "; a lower --lr may help");
    adam_.step(model_.parameters(), learning_rate());
    return pass;
  }

  /// Sums over the test set.
  Totals evaluate(const Batches& batches) {
    Totals totals;
    while (totals.images < static_cast<double>(batches.test_size())) {
      const Batch batch = batches.test(static_cast<deq::Index>(totals.images));
      totals.add(method().evaluate(batch), batch.size());
    }
    return totals;
  }

  /// Goes on from where another trainer of the same model is.
  void adopt(Trainer& other) {
    std::vector<Tensor> first, second;
    for (std::size_t i = 0; i < model_.parameters().size(); ++i) {
      model_.parameters()[i].value = other.model_.parameters()[i].value.clone();
      first.push_back(other.adam_.first_moment(static_cast<deq::Index>(i)));
      second.push_back(other.adam_.second_moment(static_cast<deq::Index>(i)));
    }
    model_.batch_norms() = other.model_.batch_norms();
    adam_.restore(other.steps(), first, second);
  }

  std::int64_t steps() const { return adam_.steps(); }
  bool pretraining() const { return steps() < pretrain_steps_; }
  double learning_rate() const { return schedule_(steps()); }
  /// The masks of the next step.
  std::vector<Tensor> masks(const Batch& batch) const {
    return dropout_masks(model_.config(), seed_, steps(), batch);
  }

  Model& model() { return model_; }
  const Model& model() const { return model_; }
  deq::Adam<Device>& adam() { return adam_; }
  const deq::Adam<Device>& adam() const { return adam_; }

 private:
  Method& method() { return pretraining() ? *unrolled_ : *equilibrium_; }
  /// The cosine's end; a learning rate below it stays as it is.
  static double lowest_rate(const Options& options) {
    return std::min(1e-6, options.recipe.learning_rate);
  }

  std::string gradient_;
  std::uint64_t seed_;
  std::int64_t pretrain_steps_;
  deq::CosineSchedule schedule_;
  Model model_;
  deq::Adam<Device> adam_;
  std::unique_ptr<Method> equilibrium_, unrolled_;
};

}  // namespace examples
