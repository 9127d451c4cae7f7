// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "../support/csv.hpp"
#include "../support/interrupt.hpp"
#include "../support/progress.hpp"
#include "checkpoint.hpp"
#include "output.hpp"
#include "stopwatch.hpp"

namespace examples {

/// One training from the first step, or from a checkpoint, to the last. Returns the exit code.
template <deq::Backend B>
class Training {
 public:
  Training(const Options& options, const Dataset<B>& data)
      : options_(options),
        data_(data),
        batches_(options, data),
        steps_(options.recipe.epochs * batches_.steps_per_epoch()),
        trainer_(options, options.gradient, steps_),
        checkpoint_(options.out / "checkpoint.safetensors"),
        epoch_(begin()),
        step_log_(CsvLog::resume(options.out / "steps.csv",
                                 {"step", "epoch", "unrolled", "learning_rate", "loss", "accuracy",
                                  "forward_iterations", "forward_residual", "vjps", "seconds"},
                                 trainer_.steps())),
        epoch_log_(CsvLog::resume(options.out / "epochs.csv",
                                  {"step", "epoch", "train_loss", "train_accuracy", "test_loss",
                                   "test_accuracy", "forward_iterations", "forward_residual"},
                                  trainer_.steps())) {}

  int run() {
    introduce();
    const std::int64_t end = options_.stop_at ? std::min(options_.stop_at, steps_) : steps_;
    while (trainer_.steps() < end && !interrupt_.requested()) {
      step();
      if (trainer_.steps() % batches_.steps_per_epoch() == 0) finish_epoch();
      if (trainer_.steps() % options_.checkpoint_every == 0) save();
    }
    save();
    bar_.clear();
    if (trainer_.steps() < steps_)
      std::printf("stopped at step %lld of %lld; to go on, add --resume\n",
                  as_printed(trainer_.steps()), as_printed(steps_));
    std::printf("checkpoint: %s\n", checkpoint_.c_str());
    return interrupt_.exit_code();
  }

 private:
  /// Loads the checkpoint, or makes sure that there is none to be lost.
  Totals begin() {
    make_directory(options_.out);
    if (options_.resume) return load_checkpoint(checkpoint_, options_, trainer_);
    deq::require(!std::filesystem::exists(checkpoint_), checkpoint_.string(),
                 " exists: go on with --resume, or choose another --out");
    return {};
  }

  void introduce() const {
    const deq::Mdeq<B>& model = trainer_.model();
    std::printf("data       %s\n", data_.name.c_str());
    std::printf("model      %s, %td parameters, state of %td numbers an image\n",
                options_.model.c_str(), deq::count_values(model.parameters()),
                model.config().state_size());
    std::printf("gradient   %s after %s, %td threads\n", options_.gradient.c_str(),
                options_.solver.c_str(), static_cast<deq::Index>(deq::num_threads()));
    std::printf("training   step %lld to %lld, %lld an epoch, the first %lld unrolled\n",
                as_printed(trainer_.steps()), as_printed(steps_),
                as_printed(batches_.steps_per_epoch()),
                as_printed(std::min(steps_, options_.recipe.pretrain_steps)));
    std::fflush(stdout);
  }

  void step() {
    const Stopwatch watch;
    const Batch<B> batch = batches_.training(trainer_.steps());
    const bool unrolled = trainer_.pretraining();
    const double rate = trainer_.learning_rate();
    const deq::PassReport pass = trainer_.step(batch);
    epoch_.add(pass, batch.size());
    const double seconds = watch.seconds(), n = static_cast<double>(batch.size());
    const std::int64_t done = trainer_.steps();
    step_log_.row(done, (done - 1) / batches_.steps_per_epoch() + 1, unrolled ? 1 : 0, rate,
                  pass.loss, static_cast<double>(pass.correct) / n, pass.solve.mean_iterations(),
                  pass.solve.mean_relative(), pass.adjoint.mean_vjps(), seconds);
    images_ += n;
    seconds_ += seconds;
    Progress progress = training_progress(unrolled ? "pre-training" : options_.gradient, done,
                                          steps_, batches_.steps_per_epoch(), epoch_);
    progress.images_per_second = images_ / seconds_;
    bar_.update(progress);
  }

  void finish_epoch() {
    const Totals test = trainer_.evaluate(batches_);
    const std::int64_t epoch = trainer_.steps() / batches_.steps_per_epoch();
    epoch_log_.row(trainer_.steps(), epoch, epoch_.mean(&Totals::loss),
                   epoch_.mean(&Totals::correct), test.mean(&Totals::loss),
                   test.mean(&Totals::correct), epoch_.mean(&Totals::iterations),
                   epoch_.mean(&Totals::residual));
    bar_.clear();
    std::printf(
        "epoch %lld: training loss %.4f, accuracy %.2f %%; test loss %.4f, accuracy %.2f %%\n",
        as_printed(epoch), epoch_.mean(&Totals::loss), 100 * epoch_.mean(&Totals::correct),
        test.mean(&Totals::loss), 100 * test.mean(&Totals::correct));
    std::fflush(stdout);
    epoch_ = {};
  }

  void save() const { save_checkpoint(checkpoint_, options_, trainer_, epoch_); }
  static long long as_printed(std::int64_t n) { return n; }

  const Options& options_;
  const Dataset<B>& data_;
  Batches<B> batches_;
  std::int64_t steps_;
  Trainer<B> trainer_;
  std::filesystem::path checkpoint_;
  Totals epoch_;
  CsvLog step_log_, epoch_log_;
  InterruptGuard interrupt_;
  ProgressBar bar_;
  double images_ = 0, seconds_ = 0;  ///< since the program has started
};

}  // namespace examples
