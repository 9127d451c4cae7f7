// SPDX-License-Identifier: MIT
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "../support/progress.hpp"
#include "../support/table.hpp"
#include "side_by_side.hpp"

namespace examples {

/// Times a training pass of every method on freshly initialised weights and prints a table. Returns
/// the exit code.
template <deq::Backend B>
int benchmark(Options options) {
  options.synthetic = true;  // the numbers in the pixels cost nothing
  options.train_samples = options.recipe.batch;
  options.test_samples = 1;
  const Dataset<B> data = load_dataset<B>(options);
  const Batch<B> batch = Batches<B>(options, data).training(0);
  const deq::Mdeq<B> model(model_config(options), options.seed);
  const std::vector<deq::Tensor<B>> masks = dropout_masks(model.config(), options.seed, 0, batch);

  SideBySide<B> methods(options, options.compare);
  ProgressBar bar;
  for (int round = 0; round <= options.rounds; ++round) {
    methods.round(model, batch, masks);
    bar.update({.label = "benchmark",
                .fraction = static_cast<double>(round) / static_cast<double>(options.rounds)});
  }
  bar.clear();

  Table table({"gradient", "images/s", "speed-up", "ms/pass", "forward steps", "residual", "VJPs"});
  for (std::size_t i = 0; i < options.compare.size(); ++i) {
    const deq::PassReport& pass = methods.last_pass(i);
    const double seconds = methods.seconds(i);
    table.row({options.compare[i], fixed(static_cast<double>(batch.size()) / seconds, 1),
               fixed(methods.speed_up(i), 2), fixed(1000 * seconds, 1),
               fixed(pass.solve.mean_iterations(), 1), scientific(pass.solve.mean_relative(), 1),
               fixed(pass.adjoint.mean_vjps(), 1)});
  }
  std::printf(
      "Training pass (forward and backward) of MDEQ %s, batch %td, %d threads: medians of %d\n"
      "interleaved rounds; initial weights, generated images; %s solver\n\n%s",
      options.model.c_str(), batch.size(), deq::num_threads(), options.rounds,
      options.solver.c_str(), table.text().c_str());
  return 0;
}

}  // namespace examples
