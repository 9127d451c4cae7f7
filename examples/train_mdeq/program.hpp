// SPDX-License-Identifier: MIT
// The program on the device of a backend. The source is one; each backend is compiled by the
// compiler that it needs.
#pragma once

#include "benchmark.hpp"
#include "comparison.hpp"
#include "data.hpp"
#include "options.hpp"
#include "training.hpp"

namespace examples {

/// Does what the command line asks for. Returns the exit code.
template <deq::Backend B>
int run_on(const Options& options) {
  if (options.benchmark) return benchmark<B>(options);
  const Dataset<B> data = load_dataset<B>(options);
  if (!options.compare.empty()) return Comparison<B>(options, data).run();
  return Training<B>(options, data).run();
}

/// The same with --device cuda; in train_mdeq/cuda.cu.
int run_on_cuda(const Options& options);

}  // namespace examples
