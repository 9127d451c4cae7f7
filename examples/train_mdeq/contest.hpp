// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "side_by_side.hpp"
#include "trainer.hpp"

namespace examples {

/// The same training by several gradient methods in lockstep: the same seed, batches and dropout,
/// one step of each in turn, so that what else the machine does slows all of them alike.
template <deq::Backend B>
class Contest {
 public:
  struct Contestant {
    Contestant(const Options& options, const std::string& name, std::int64_t steps)
        : gradient(name), trainer(options, name, steps) {}

    std::string gradient;
    Trainer<B> trainer;
    Totals epoch;        ///< of the current epoch, while training
    double seconds = 0;  ///< spent on its own steps, pre-training included
    std::vector<double> epochs, times, accuracies;  ///< on the test set, a point an epoch
    std::vector<double> cosines;  ///< with implicit's gradient, a point a measurement
  };

  /// `side_by_side` has the same methods in the same order.
  Contest(const Options& options, const Dataset<B>& data, SideBySide<B>& side_by_side)
      : batches_(options, data),
        steps_(options.recipe.epochs * batches_.steps_per_epoch()),
        side_by_side_(side_by_side) {
    for (const std::string& gradient : options.compare)
      contestants_.emplace_back(options, gradient, steps_);
  }

  void step() {
    const Batch<B> batch = batches_.training(step_);
    if (leader().trainer.pretraining())
      pretrain(batch);
    else
      train(batch);
    ++step_;
    if (step_ % std::max<std::int64_t>(1, steps_ / measurements) == 0) measure(batch);
    if (at_end_of_epoch()) evaluate();
  }

  bool finished() const { return step_ == steps_; }
  bool at_end_of_epoch() const { return step_ % batches_.steps_per_epoch() == 0; }
  std::int64_t step_number() const { return step_; }
  std::int64_t steps() const { return steps_; }
  std::int64_t steps_per_epoch() const { return batches_.steps_per_epoch(); }
  const std::deque<Contestant>& contestants() const { return contestants_; }
  /// Where the cosines were measured.
  const std::vector<double>& measured_at() const { return measured_at_; }
  /// The method that the others are measured against.
  const Contestant& reference() const {
    return *std::find_if(contestants_.begin(), contestants_.end(),
                         [](const Contestant& c) { return c.gradient == "implicit"; });
  }

 private:
  static constexpr std::int64_t measurements = 24;

  /// Pre-training knows no gradient method: one contestant does it for all.
  void pretrain(const Batch<B>& batch) {
    const Stopwatch watch;
    leader().epoch.add(leader().trainer.step(batch), batch.size());
    const double seconds = watch.seconds();
    for (Contestant& c : contestants_) {
      c.seconds += seconds;
      c.epoch = leader().epoch;
      if (!leader().trainer.pretraining() && &c != &leader()) c.trainer.adopt(leader().trainer);
    }
  }

  void train(const Batch<B>& batch) {
    for (std::size_t turn = 0; turn < contestants_.size(); ++turn) {
      Contestant& c = contestants_[(static_cast<std::size_t>(step_) + turn) % contestants_.size()];
      const Stopwatch watch;
      c.epoch.add(c.trainer.step(batch), batch.size());
      c.seconds += watch.seconds();
    }
  }

  /// All methods on the weights that implicit has reached.
  void measure(const Batch<B>& batch) {
    if (leader().trainer.pretraining()) return;
    const Trainer<B>& at = reference().trainer;
    side_by_side_.round(at.model(), batch, at.masks(batch));
    measured_at_.push_back(epochs());
    for (std::size_t i = 0; i < contestants_.size(); ++i)
      contestants_[i].cosines.push_back(side_by_side_.cosine(i));
  }

  void evaluate() {
    const bool together = leader().trainer.pretraining();
    double accuracy = 0;
    for (Contestant& c : contestants_) {
      if (!together || &c == &leader())
        accuracy = c.trainer.evaluate(batches_).mean(&Totals::correct);
      c.epochs.push_back(epochs());
      c.times.push_back(c.seconds);
      c.accuracies.push_back(accuracy);
      c.epoch = {};
    }
  }

  Contestant& leader() { return contestants_.front(); }
  double epochs() const {
    return static_cast<double>(step_) / static_cast<double>(batches_.steps_per_epoch());
  }

  Batches<B> batches_;
  std::int64_t steps_, step_ = 0;
  SideBySide<B>& side_by_side_;
  std::deque<Contestant> contestants_;
  std::vector<double> measured_at_;
};

}  // namespace examples
