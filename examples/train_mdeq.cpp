// SPDX-License-Identifier: MIT
// How do I train a multiscale deep equilibrium model, and which gradient method should I take?
//
//     train_mdeq --gradient gdeq                        one training, resumable
//     train_mdeq --compare implicit,jfb,npg,gdeq        the methods side by side
//     train_mdeq --benchmark                            only their speed

#include <deq/core/parallel.hpp>

#include "train_mdeq/benchmark.hpp"
#include "train_mdeq/comparison.hpp"
#include "train_mdeq/data.hpp"
#include "train_mdeq/options.hpp"
#include "train_mdeq/training.hpp"

int main(int argc, char** argv) {
  using namespace examples;
  return run_program("train_mdeq", [&] {
    const std::optional<Options> options = read_options(argc, argv);
    if (!options) return 0;
    deq::set_num_threads(options->threads);
    if (options->benchmark) return benchmark(*options);

    const Dataset data = load_dataset(*options);
    if (!options->compare.empty()) return Comparison(*options, data).run();
    return Training(*options, data).run();
  });
}
