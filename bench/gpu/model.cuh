// SPDX-License-Identifier: MIT
// MDEQ: f, its VJP, the solve, the training step, inference, memory.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <deq/backend/everybody.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/model/mdeq_classifier.hpp>
#include <deq/nn/adam.hpp>

#include "convolutions.cuh"

namespace gpu_bench {

/// The solver's steps are stored as coarsely as images are.
template <class B>
using Storage = std::conditional_t<std::is_same_v<deq::ImageScalar<B>, deq::Bfloat16>,
                                   deq::CompactSteps, deq::StepsOnly>;
template <class B>
constexpr double step_bytes = std::is_same_v<Storage<B>, deq::CompactSteps> ? sizeof(deq::Bfloat16)
                                                                            : float_bytes;

/// Broyden's method with a budget of iterations that nothing cuts short, so that all do the same
/// work.
template <class B>
deq::Broyden<Storage<B>> broyden() {
  return {.stopping = {.max_iterations = forward_iterations,
                       .relative_tolerance = 0,
                       .divergence_factor = INFINITY,
                       .stall_window = 0},
          .memory = forward_iterations};
}

/// A freshly initialised network, and a batch of data, those of bench/mdeq_work.hpp.
template <class B>
struct Work {
  using Numbers = deq::Tensor<B>;
  using Classifier = deq::MdeqClassifier<B, deq::Broyden<Storage<B>>, deq::Gdeq>;

  deq::Mdeq<B> model;
  Numbers images;
  std::vector<Index> host_labels;
  deq::Labels<B> labels;
  std::vector<Numbers> masks;
  Numbers z;  ///< where f and its VJP are measured alone

  Work(const MdeqConfig& config, Index batch)
      : model(config),
        images(random_normal<B>({batch, 3, 32, 32}, 0)),
        z(random_normal<B>({batch, config.state_size()}, 1)) {
    // Biases with which the f of TINY contracts; see MdeqWork.
    for (auto& p : model.parameters())
      if (config.branches() == 2 && p.name.ends_with("gnorm.bias"))
        p.value = random_normal<B>(p.value.shape(), 2, 5);
    for (Index n = 0; n < batch; ++n) host_labels.push_back(n % config.classes);
    labels.assign(host_labels);
    for (Index i = 0; i < config.branches(); ++i) masks.push_back(mask(i, 0));
  }
  Index batch() const { return z.extent(0); }
  Numbers mask(Index branch, std::uint32_t step) const {
    const MdeqConfig& c = model.config();
    return deq::dropout_mask<B>({batch(), c.channels_of(branch), 1, 1}, c.dropout,
                                {.step = step, .layer = static_cast<std::uint32_t>(branch)});
  }
  Classifier classifier() { return Classifier(model, broyden<B>(), deq::Gdeq{}); }

  void save(const std::filesystem::path& path) const {
    deq::SafetensorsWriter writer;
    model.save(writer);
    const auto add = [&](const std::string& name, const Numbers& t) {
      writer.add<float>(name, t.shape(), t.to_host());
    };
    add("images", images);
    writer.add<std::int64_t>("labels", {batch()},
                             std::vector<std::int64_t>(host_labels.begin(), host_labels.end()));
    for (std::size_t i = 0; i < masks.size(); ++i) add("mask." + std::to_string(i), masks[i]);
    add("z", deq::mdeq_state_to_nchw(model.config(), z));
    writer.write(path);
  }
};

inline double norm(const std::vector<float>& values) {
  double sum = 0;
  for (const float v : values) sum += double{v} * double{v};
  return std::sqrt(sum);
}

/// Bytes of the device that are in use, by whomever.
inline double bytes_in_use() {
  std::size_t free = 0, total = 0;
  deq::cuda::check(cudaMemGetInfo(&free, &total), "ask for the free memory");
  return static_cast<double>(total - free);
}
/// Memory from here on.
class Memory {
 public:
  Memory() {
    deq::cuda::synchronize();
    deq::cuda::DevicePool::instance().trim();
    before_ = bytes_in_use();
    deq::cuda::DevicePool::instance().reset_peak();
    pool_before_ = static_cast<double>(deq::cuda::DevicePool::instance().bytes());
  }
  /// The most that was held for numbers, by graphs as well.
  double peak() const {
    return static_cast<double>(deq::cuda::DevicePool::instance().peak_bytes()) - pool_before_;
  }
  /// Of the device now, with what a graph itself takes.
  double device() const { return bytes_in_use() - before_; }

 private:
  double before_ = 0, pool_before_ = 0;
};

/// A network in training that has done a step, so that everything is in its place for a recording.
template <class B>
struct Training {
  Work<B> work;
  typename Work<B>::Classifier classifier;
  deq::Adam<B> adam;

  Training(const MdeqConfig& config, Index batch)
      : work(config, batch),
        classifier(work.classifier()),
        adam(std::span<const deq::Parameter<B>>(work.model.parameters())) {
    adam.begin_step(0);
    step();
  }
  /// Forward, the gradients of all parameters with dropout, and Adam.
  void step() {
    classifier.train(work.images, work.labels, work.masks);
    adam.apply(work.model.parameters());
  }
};

template <class B>
class Model {
 public:
  Model(const MdeqConfig& config, std::string prefix, std::string precision, const Options& o,
        const Machine& machine, Report& report)
      : config_(config),
        prefix_(std::move(prefix)),
        precision_(std::move(precision)),
        o_(o),
        machine_(machine),
        report_(report) {}

  void all() {
    attempt("step_eager", [&] { step(false); });
    attempt("step", [&] { step(true); });
    for (const Index batch : std::set{Index{1}, o_.batch}) {
      const std::string name = "inference_" + std::to_string(batch);
      attempt(name, [&] { inference(name, batch); });
    }
    attempt("f", [&] { layer(); });
  }

  /// Two epochs of CIFAR-10's size, or what 90 s allow of them, with new images, labels and masks
  /// for every step, drawn and uploaded by the host as training does, and what 220 would take.
  void epochs() {
    attempt("epochs", [&] {
      constexpr double samples = 50000, wanted = 220, most_seconds = 90;
      Training<B> training(config_, o_.batch);
      Work<B>& work = training.work;
      Graph graph([&] { training.step(); });
      const std::vector<float> images = normal_numbers(work.images.size(), 5);
      const auto steps_of_epoch = std::ceil(samples / static_cast<double>(o_.batch));
      int steps = 0;
      const auto start = std::chrono::steady_clock::now();
      double seconds = 0;
      while (steps < 2 * steps_of_epoch && seconds < most_seconds) {
        B::upload_bytes(work.images.data(), images.data(), images.size() * sizeof(float));
        work.labels.assign(work.host_labels);
        for (std::size_t i = 0; i < work.masks.size(); ++i) {
          const auto drawn = work.mask(static_cast<Index>(i), static_cast<std::uint32_t>(steps));
          B::copy_bytes(work.masks[i].data(), drawn.data(),
                        static_cast<std::size_t>(drawn.size()) * sizeof(float));
        }
        training.adam.begin_step(1e-3);
        graph.launch();
        graph.finish();
        ++steps;
        seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      }
      const double epochs = steps / steps_of_epoch;
      report_.add(prefix_ + "epochs", {.seconds = seconds, .recorded = 1}, 0, 0, precision_,
                  {{"epochs", epochs},
                   {"steps", steps},
                   {"images_per_second", steps * static_cast<double>(o_.batch) / seconds},
                   {"minutes_of_220_epochs", seconds / epochs * wanted / 60},
                   {"last_loss", training.classifier.last_report().loss}});
    });
  }

 private:
  using Numbers = deq::Tensor<B>;

  void attempt(const std::string& name, const std::function<void()>& measure) {
    try {
      measure();
    } catch (const std::exception& error) {
      report_.failed(prefix_ + name, error.what());
      cudaGetLastError();
    }
    deq::cuda::DevicePool::instance().trim();
  }

  /// A step of training, at once or recorded.
  void step(bool recorded) {
    const Memory memory;
    Training<B> training(config_, o_.batch);
    std::optional<Graph> graph;
    if (recorded) graph.emplace([&] { training.step(); });
    const std::function<void()> once_more = [&] {
      // A rate of 0 leaves the weights where they are: every repetition does the same work.
      training.adam.begin_step(0);
      if (!recorded) return training.step();
      graph->launch();
      graph->finish();
    };
    const double seconds = seconds_of(o_.seconds, once_more);
    const deq::PassReport& pass = training.classifier.last_report();
    // f(z*) and its recording beside the solve, then the gradients of state and parameters: as many
    // products each as f. Of the stem and the head nothing is counted.
    const Total f = total();
    const double passes = evaluations(pass.solve) + 4;
    report_.add_with_floor(
        prefix_ + (recorded ? "step" : "step_eager"),
        {.seconds = seconds, .recorded = recorded ? 1.0 : 0.0}, passes * f.flop, 0,
        f.floor ? std::optional(passes * *f.floor) : std::nullopt,
        {{"images_per_second", static_cast<double>(o_.batch) / seconds},
         {"evaluations", evaluations(pass.solve)},
         {"peak_bytes", memory.peak()},
         {"step_bytes", step_bytes<B>},
         {"device_bytes", memory.device()},
         {"loss", pass.loss},
         {"z", norm(training.classifier.solution().z.to_host())},
         {"minutes_of_220_epochs",
          seconds * 220 * std::ceil(50000 / static_cast<double>(o_.batch)) / 60}});
  }

  /// Evaluation by the same classifier; its inverse, which nobody asks for, is updated once more
  /// than needed.
  void inference(const std::string& name, Index batch) {
    const Memory memory;
    Work<B> work(config_, batch);
    auto classifier = work.classifier();
    Numbers logits;
    const auto infer = [&] { logits = classifier.logits(work.images); };
    const auto add = [&](const std::string& kind, double recorded, double seconds) {
      const double f = evaluations(classifier.solution().report);
      const auto list = convolutions(config_, batch);
      const Total t = total_of(list, machine_, precision_);
      report_.add_with_floor(prefix_ + name + kind, {.seconds = seconds, .recorded = recorded},
                             f * t.flop, 0, t.floor ? std::optional(f * *t.floor) : std::nullopt,
                             {{"images_per_second", static_cast<double>(batch) / seconds},
                              {"evaluations", f},
                              {"peak_bytes", memory.peak()},
                              {"logits", norm(logits.to_host())}});
    };
    add("_eager", 0, seconds_of(o_.seconds, infer));
    Graph graph(infer);
    add("", 1, seconds_of(o_.seconds, [&] {
          graph.launch();
          graph.finish();
        }));
  }

  /// f, its recording on a tape, a product with J^T, a solve and what of it is not f.
  void layer() {
    Work<B> work(config_, o_.batch);
    const Index dim = config_.state_size();
    const auto values = work.model.values();
    const std::span<const Numbers> all(values);
    const std::vector<Numbers> x{work.model.stem(work.images, all, deq::BatchNormMode::evaluate)};
    const auto effective = work.model.layer_parameters(all);
    std::vector<Numbers> theta;
    for (const Numbers& t : effective) theta.push_back(t.frozen());
    const Total one = total();
    double f_seconds = 0;
    {
      deq::MdeqFunction f = work.model.function(false);
      deq::TapedMap<B, deq::MdeqFunction, std::dynamic_extent, std::dynamic_extent> map;
      map.bind(f, {dim}, x, theta);
      deq::Everybody<B> everybody;
      const deq::Samples a = everybody(o_.batch);
      const Numbers out(work.z.shape());
      const auto add = [&](const std::string& name, const Timing& t, Fields more = {}) {
        more.emplace_back("images_per_second", static_cast<double>(o_.batch) / t.seconds);
        report_.add_with_floor(prefix_ + name, t, one.flop, 0, one.floor, std::move(more));
      };
      const auto evaluate = [&] { map.evaluate(a, work.z.batch(), out.batch()); };
      add("f_eager", {.seconds = seconds_of(o_.seconds, evaluate)});
      const Timing t = recorded_seconds(o_.seconds, evaluate);
      f_seconds = t.seconds;
      add("f", t, {{"out", norm(out.to_host())}});
      const auto record = [&] { map.record(work.z.batch(), 1); };
      add("record", recorded_seconds(o_.seconds, record));
      record();
      add("vjp", recorded_seconds(o_.seconds, [&] { map.vjp(a, work.z.batch(), out.batch()); }));
    }
    auto layer = deq::equilibrium<deq::Broyden<Storage<B>>, deq::Gdeq>(work.model.function(false),
                                                                       broyden<B>());
    const Numbers start(work.z.shape(), 0.f);
    const auto inputs = deq::inputs(std::span<const Numbers>(x));
    const auto params = deq::params(std::span<const Numbers>(theta));
    auto solution = layer.solve(start, inputs, params);
    const auto solve = [&] { layer.solve(start, inputs, params, solution); };
    const auto add = [&](const std::string& name, double recorded, double seconds) {
      const double n = evaluations(solution.report);
      report_.add_with_floor(prefix_ + name, {.seconds = seconds, .recorded = recorded},
                             n * one.flop, 0,
                             one.floor ? std::optional(n * *one.floor) : std::nullopt,
                             {{"evaluations", n},
                              {"images_per_second", static_cast<double>(o_.batch) / seconds},
                              {"broyden_share", (seconds - n * f_seconds) / seconds},
                              {"relative_residual", solution.report.mean_relative()},
                              {"z", norm(solution.z.to_host())}});
    };
    add("solve_eager", 0, seconds_of(o_.seconds, solve));
    Graph graph(solve);
    add("solve", 1, seconds_of(o_.seconds, [&] {
          graph.launch();
          graph.finish();
        }));
  }

  static double evaluations(const deq::SolveReport& report) {
    return report.samples.empty() ? 0 : static_cast<double>(report.samples[0].evaluations);
  }
  Total total() const { return total_of(convolutions(config_, o_.batch), machine_, precision_); }

  MdeqConfig config_;
  std::string prefix_, precision_;
  const Options& o_;
  const Machine& machine_;
  Report& report_;
};

}  // namespace gpu_bench
