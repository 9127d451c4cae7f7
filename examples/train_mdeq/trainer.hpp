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
template <deq::Backend B>
class Trainer {
  using Tensor = deq::Tensor<B>;
  using Model = deq::Mdeq<B>;

 public:
  Trainer(const Options& options, const std::string& gradient, std::int64_t total_steps)
      : gradient_(gradient),
        seed_(options.seed),
        pretrain_steps_(options.recipe.pretrain_steps),
        schedule_(options.recipe.learning_rate, total_steps, lowest_rate(options)),
        model_(model_config(options), options.seed),
        adam_(model_.parameters(), {.weight_decay = options.recipe.weight_decay}),
        staged_size_(options.recipe.batch),
        equilibrium_(gradient, options, model_),
        unrolled_("unrolled", options, model_) {}
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  /// One step of Adam. Throws deq::Error if the loss is no longer a number.
  deq::PassReport step(const Batch<B>& batch) {
    const std::vector<Tensor> dropout = masks(batch);
    Phase& phase = this->phase();
    if (!pretraining()) unrolled_.replay = {};  // its memory is wanted
    adam_.begin_step(learning_rate());
    Method<B>& method = phase.method(batch.size() == staged_size_);
    if (batch.size() == staged_size_) {
      stage(batch, dropout);
      phase.replay([&] {
        method.train(images_, labels_, masks_);
        adam_.apply(model_.parameters());
      });
    } else {
      method.train(batch.images, deq::Labels<B>(batch.labels), dropout);
      adam_.apply(model_.parameters());
    }
    const deq::PassReport& pass = method.last_report();
    deq::require<deq::Error>(std::isfinite(pass.loss), gradient_, ": the loss is ", pass.loss,
                             " at step ", steps() - 1, "; a lower --lr may help");
    return pass;
  }

  /// Sums over the test set.
  Totals evaluate(const Batches<B>& batches) {
    Totals totals;
    while (totals.images < static_cast<double>(batches.test_size())) {
      const Batch<B> batch = batches.test(static_cast<deq::Index>(totals.images));
      Method<B>& method = phase().method(false);
      method.evaluate(batch);
      totals.add(method.last_report(), batch.size());
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
    for (std::size_t i = 0; i < model_.batch_norms().size(); ++i) {
      const deq::BatchNormState<B>& from = other.model_.batch_norms()[i];
      model_.batch_norms()[i].running_mean = from.running_mean.clone();
      model_.batch_norms()[i].running_var = from.running_var.clone();
      model_.batch_norms()[i].batches = from.batches;
    }
    adam_.restore(other.steps(), first, second);
  }

  std::int64_t steps() const { return adam_.steps(); }
  bool pretraining() const { return steps() < pretrain_steps_; }
  double learning_rate() const { return schedule_(steps()); }
  /// The masks of the next step.
  std::vector<Tensor> masks(const Batch<B>& batch) const {
    return dropout_masks(model_.config(), seed_, steps(), batch);
  }

  Model& model() { return model_; }
  const Model& model() const { return model_; }
  deq::Adam<B>& adam() { return adam_; }
  const deq::Adam<B>& adam() const { return adam_; }

 private:
  /// A method at work. What a backend records must not be used for anything else meanwhile, so
  /// there one method is for full batches and another for all others.
  struct Phase {
    Phase(const std::string& gradient, const Options& options, Model& model)
        : full(make_method(gradient, options, model)),
          other(B::Replay::records ? make_method(gradient, options, model) : nullptr) {}
    Method<B>& method(bool full_batch) { return full_batch || !other ? *full : *other; }

    std::unique_ptr<Method<B>> full, other;
    typename B::Replay replay;
  };

  Phase& phase() { return pretraining() ? unrolled_ : equilibrium_; }
  /// Puts a full batch where every step finds it.
  void stage(const Batch<B>& batch, const std::vector<Tensor>& dropout) {
    const auto put = [](const Tensor& from, const Tensor& to) {
      B::copy_bytes(to.data(), from.data(), static_cast<std::size_t>(to.size()) * sizeof(float));
    };
    if (!images_) {
      images_ = Tensor(batch.images.shape());
      for (const Tensor& mask : dropout) masks_.emplace_back(mask.shape());
    }
    put(batch.images, images_);
    for (std::size_t i = 0; i < dropout.size(); ++i) put(dropout[i], masks_[i]);
    labels_.assign(batch.labels);
  }
  /// The cosine's end; a learning rate below it stays as it is.
  static double lowest_rate(const Options& options) {
    return std::min(1e-6, options.recipe.learning_rate);
  }

  std::string gradient_;
  std::uint64_t seed_;
  std::int64_t pretrain_steps_;
  deq::CosineSchedule schedule_;
  Model model_;
  deq::Adam<B> adam_;
  deq::Index staged_size_;
  Tensor images_;
  deq::Labels<B> labels_;
  std::vector<Tensor> masks_;
  Phase equilibrium_, unrolled_;
};

}  // namespace examples
