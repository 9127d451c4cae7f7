// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <deq/core/types.hpp>

#include "../support/cli.hpp"

namespace examples {

/// How a model is trained unless the command line says otherwise.
struct Recipe {
  std::int64_t epochs = 50;
  deq::Index batch = 128;
  double learning_rate = 1e-3;
  double weight_decay = 2.5e-6;
  double dropout = 0.25;
  std::int64_t pretrain_steps = 3000;
  std::string augment = "off";

  /// For tiny and large the original configurations (two devices of 64 images, four of 32). The
  /// demo's have been chosen for a few minutes on two cores.
  static Recipe of(const std::string& model) {
    if (model == "large")
      return {.epochs = 220,
              .weight_decay = 0,
              .dropout = 0.3,
              .pretrain_steps = 20000,
              .augment = "on"};
    if (model == "demo")
      return {.epochs = 4, .batch = 32, .learning_rate = 3e-3, .dropout = 0, .pretrain_steps = 100};
    return {};
  }
};

/// Everything that the command line says.
struct Options {
  std::string data = "data/cifar10";
  bool synthetic = false;
  deq::Index train_samples = 0, test_samples = 0;  ///< 0: all

  std::string model = "tiny";
  std::string gradient = "implicit";
  std::string solver = "broyden";
  int forward_iterations = 18, backward_iterations = 20;
  double tolerance = 1e-3;
  int neumann_terms = 5;
  double neumann_damping = 0.5;
  int refinements = 5;
  int pretrain_layers = 10;

  Recipe recipe;
  std::uint64_t seed = 0;
  std::string device = "cpu", precision = "tf32";
  int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));

  std::filesystem::path out = "runs/mdeq";
  bool resume = false;
  std::int64_t checkpoint_every = 500;
  std::int64_t stop_at = 0;  ///< 0: at the end

  std::vector<std::string> compare;
  bool benchmark = false;
  int rounds = 10;

  /// What a checkpoint has to agree with to be continued: all that the numbers depend on.
  std::vector<std::pair<std::string, std::string>> settings() const {
    const Recipe& r = recipe;
    return {{"--data", synthetic ? "synthetic" : "CIFAR-10"},
            {"--train-samples", shortest(train_samples)},
            {"--model", model},
            {"--gradient", gradient},
            {"--solver", solver},
            {"--forward-iterations", shortest(forward_iterations)},
            {"--backward-iterations", shortest(backward_iterations)},
            {"--tolerance", shortest(tolerance)},
            {"--neumann-terms", shortest(neumann_terms)},
            {"--neumann-damping", shortest(neumann_damping)},
            {"--refinements", shortest(refinements)},
            {"--pretrain-layers", shortest(pretrain_layers)},
            {"--pretrain-steps", shortest(r.pretrain_steps)},
            {"--epochs", shortest(r.epochs)},
            {"--batch", shortest(r.batch)},
            {"--lr", shortest(r.learning_rate)},
            {"--weight-decay", shortest(r.weight_decay)},
            {"--dropout", shortest(r.dropout)},
            {"--augment", r.augment},
            {"--seed", shortest(seed)},
            {"--device", device},
            {"--precision", device == "cuda" ? precision : "strict"}};
  }
};

/// The gradient methods by name. "unrolled" trains as pre-training does, from start to end.
inline const std::vector<std::string> gradient_names = {"implicit", "jfb",          "npg",
                                                        "gdeq",     "gdeq-refined", "unrolled"};

namespace detail {

/// Declares every option and reads the command line; false if it asked for help.
inline bool parse(int argc, const char* const* argv, Options& o) {
  CommandLine cli("train_mdeq",
                  "Trains a multiscale deep equilibrium model (MDEQ) to classify CIFAR-10, by the "
                  "gradient method of your choice, or compares the methods side by side.\n"
                  "Defaults are in parentheses, those of training are the original configuration "
                  "of --model tiny; other models have their own.");
  Recipe& r = o.recipe;
  std::string out = o.out.string();

  cli.section("Data");
  cli.option("--data DIR", o.data,
             "CIFAR-10's binary batches; examples/get_cifar10.sh fetches them");
  cli.flag("--synthetic", o.synthetic, "generated images instead: needs no data, proves nothing");
  cli.option("--train-samples N", o.train_samples, "images to train on, 0 for all", {.min = 0});
  cli.option("--test-samples N", o.test_samples, "images to test on, 0 for all", {.min = 0});
  cli.choice("--augment", r.augment, {"on", "off"}, "random flips and crops");

  cli.section("Model, solver, gradient");
  cli.choice("--model", o.model, {"tiny", "large", "demo"},
             "159 thousand parameters, 11 million, or a small one on images of 16 x 16");
  cli.choice("--gradient", o.gradient, gradient_names, "how the equilibrium is differentiated");
  cli.choice(
      "--solver", o.solver, {"broyden", "broyden-compact", "anderson", "fixed-point"},
      "of the equilibrium, and of implicit's linear system; compact: a quarter of the memory, "
      "steps as bfloat16");
  cli.option("--forward-iterations N", o.forward_iterations, "at most, to solve", {.min = 1});
  cli.option("--backward-iterations N", o.backward_iterations, "at most, of implicit", {.min = 1});
  cli.option("--tolerance T", o.tolerance, "relative residual at which a solve ends", {.min = 0.0});
  cli.option("--neumann-terms K", o.neumann_terms, "of npg", {.min = 1});
  cli.option("--neumann-damping L", o.neumann_damping, "of npg", {.min = 1e-6, .max = 1.0});
  cli.option("--refinements N", o.refinements, "of gdeq-refined", {.min = 0});
  cli.option("--dropout P", r.dropout, "variational dropout", {.min = 0.0, .max = 0.99});

  cli.section("Training");
  cli.option("--epochs N", r.epochs, "passes over the data", {.min = 1});
  cli.option("--batch N", r.batch, "images a step; 32 for --benchmark", {.min = 1});
  cli.option("--lr R", r.learning_rate, "Adam's, at the start of a cosine down to 1e-6",
             {.min = 0.0});
  cli.option("--weight-decay D", r.weight_decay, "added to the gradient", {.min = 0.0});
  cli.option("--pretrain-steps N", r.pretrain_steps,
             "the first N steps train f unrolled, without a solver", {.min = 0});
  cli.option("--pretrain-layers N", o.pretrain_layers, "applications of f then", {.min = 1});
  cli.option("--seed N", o.seed, "of everything random");
  cli.option("--threads N", o.threads, "no result depends on it", {.min = 1, .max = 4096});
  cli.choice("--device", o.device, {"cpu", "cuda"}, "where to train");
  cli.choice("--precision", o.precision, {"strict", "tf32", "bf16"},
             "of products on a GPU; sums are float");

  cli.section("Output");
  cli.option("--out DIR", out, "checkpoint.safetensors, steps.csv, epochs.csv, figures");
  cli.flag("--resume", o.resume, "go on from the checkpoint in --out, to the same bits");
  cli.option("--checkpoint-every N", o.checkpoint_every, "steps; also at the end and on Ctrl-C",
             {.min = 1});
  cli.option("--stop-at STEP", o.stop_at, "save a checkpoint and stop there, 0 for the end",
             {.min = 0});

  cli.section("Instead of one training");
  cli.choices("--compare", o.compare, gradient_names,
              "train with each of these, side by side, with and without pre-training: speed-up, "
              "accuracy and cosine of the gradients with implicit's");
  cli.flag("--benchmark", o.benchmark, "only time a training step, of --compare's methods");
  cli.option("--rounds N", o.rounds, "steps of each method that --benchmark times", {.min = 1});
  if (!cli.parse(argc, argv)) return false;
  o.out = out;
  return true;
}

inline void check(const Options& o) {
  const auto uses = [&](const char* name) {
    return o.compare.empty() ? o.gradient.starts_with(name)
                             : std::any_of(o.compare.begin(), o.compare.end(),
                                           [&](const auto& g) { return g.starts_with(name); });
  };
  deq::require<UsageError>(!(uses("gdeq") && o.solver == "fixed-point"),
                           "gdeq re-uses the inverse Jacobian of the forward solve, and "
                           "--solver fixed-point leaves none behind");
  deq::require<UsageError>(o.compare.empty() || uses("implicit"),
                           "--compare needs implicit, which the others are measured against");
  deq::require<UsageError>(o.compare.empty() || !(o.resume || o.stop_at),
                           "--compare starts anew and runs to its end: it takes neither --resume "
                           "nor --stop-at");
}

}  // namespace detail

/// The options of a command line; none if it asked for help. Throws UsageError.
inline std::optional<Options> read_options(int argc, const char* const* argv) {
  // The defaults depend on the model, so it has to be known before the rest is read.
  Options first;
  if (!detail::parse(argc, argv, first)) return std::nullopt;
  Options options;
  options.recipe = Recipe::of(first.model);
  if (first.benchmark) {
    options.recipe.batch = 32;
    options.compare = {"implicit", "jfb", "npg", "gdeq"};
    if (first.solver == "fixed-point") options.compare.pop_back();
  }
  detail::parse(argc, argv, options);
  detail::check(options);
  return options;
}

}  // namespace examples
