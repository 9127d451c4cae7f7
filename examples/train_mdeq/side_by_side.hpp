// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "../support/progress.hpp"
#include "method.hpp"
#include "stopwatch.hpp"

namespace examples {

/// Measures the training pass (forward and backward) of several methods on the same weights, batch
/// and dropout masks, without training. The methods take turns and each round begins with another
/// one, so that a machine that slows down or speeds up does so for all of them.
template <deq::Backend B>
class SideBySide {
  using Tensor = deq::Tensor<B>;
  using Model = deq::Mdeq<B>;

 public:
  SideBySide(const Options& options, const std::vector<std::string>& gradients)
      : model_(model_config(options), options.seed), entries_(gradients.size()) {
    for (std::size_t i = 0; i < gradients.size(); ++i) {
      entries_[i].gradient = gradients[i];
      entries_[i].method = make_method(gradients[i], options, model_);
    }
  }

  /// One pass of every method at the weights of `model`, which stays as it is. The first round
  /// warms up: its times do not count.
  void round(const Model& model, const Batch<B>& batch, std::span<const Tensor> masks) {
    for (std::size_t i = 0; i < model_.parameters().size(); ++i)
      model_.parameters()[i].value = model.parameters()[i].value;
    const deq::Labels<B> labels(batch.labels);
    for (std::size_t turn = 0; turn < entries_.size(); ++turn) {
      Entry& entry = entries_[(rounds_ + turn) % entries_.size()];
      const Stopwatch watch;
      entry.method->train(batch.images, labels, masks);
      entry.last_pass = entry.method->last_report();
      if (rounds_ > 0) entry.seconds.push_back(watch.seconds());
      entry.last_gradient = gradient_before_head();
    }
    ++rounds_;
  }

  /// Median time of a pass of method i; a NaN before the second round.
  double seconds(std::size_t i) const {
    std::vector<double> times = entries_[i].seconds;
    if (times.empty()) return Progress::unknown;
    std::sort(times.begin(), times.end());
    return (times[(times.size() - 1) / 2] + times[times.size() / 2]) / 2;
  }
  /// How many times as fast as implicit a pass of method i is.
  double speed_up(std::size_t i) const { return seconds(implicit()) / seconds(i); }

  /// The cosine of the angle between the last gradients of method i and of implicit, over the
  /// parameters of f and of the stem. The head's gradient is the same for all methods and would
  /// only flatter.
  double cosine(std::size_t i) const {
    const std::vector<float>&a = entries_[i].last_gradient, &b = entries_[implicit()].last_gradient;
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t k = 0; k < a.size(); ++k) {
      ab += double{a[k]} * double{b[k]};
      aa += double{a[k]} * double{a[k]};
      bb += double{b[k]} * double{b[k]};
    }
    return ab / std::sqrt(aa * bb);
  }
  const deq::PassReport& last_pass(std::size_t i) const { return entries_[i].last_pass; }

 private:
  struct Entry {
    std::string gradient;
    std::unique_ptr<Method<B>> method;
    std::vector<double> seconds;
    std::vector<float> last_gradient;
    deq::PassReport last_pass;
  };

  std::size_t implicit() const {
    return static_cast<std::size_t>(
        std::find_if(entries_.begin(), entries_.end(),
                     [](const Entry& entry) { return entry.gradient == "implicit"; }) -
        entries_.begin());
  }

  std::vector<float> gradient_before_head() const {
    std::vector<float> all;
    for (std::size_t i = 0; i < model_.layout().layer_end; ++i) {
      const std::vector<float> part = model_.parameters()[i].grad.to_host();
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  Model model_;
  std::vector<Entry> entries_;
  std::size_t rounds_ = 0;
};

}  // namespace examples
