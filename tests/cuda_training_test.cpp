// SPDX-License-Identifier: MIT
// Training an MDEQ on the CUDA backend: the same losses and weights as on the CPU, and the same
// bits whether a step is recorded or not.
#include <cmath>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cuda/kernels.cuh>
#include <deq/deq.hpp>

#include "support/maps.hpp"

using namespace deq;
using deq_test::relative_error;

namespace {

const MdeqConfig config{.channels = {8, 12},
                        .head_channels = {2, 3},
                        .final_channels = 10,
                        .image_size = 8,
                        .expansion = 2,
                        .groups = 4,
                        .dropout = 0.3};
constexpr Index count = 3;

/// What a training has come to.
struct Trained {
  std::vector<double> losses;
  std::vector<std::vector<double>> gradients, weights, statistics;  ///< after the last step
  std::vector<std::int64_t> batches;
};

template <class B>
std::vector<double> host(const Tensor<B>& t) {
  const auto values = t.to_host();
  return {values.begin(), values.end()};
}

/// Steps of Adam; `Replay` says whether they may be recorded.
template <class B, class Replay, class Policy>
Trained train(const Policy& policy, std::uint32_t steps = 4) {
  using S = typename B::Scalar;
  Mdeq<B> model(config, 5);
  Adam<B> adam(model.parameters(), {.epsilon = 1e-3});
  MdeqClassifier<B, Broyden<StepsOnly>, Policy> classifier(
      model, {.stopping = {.max_iterations = 6, .relative_tolerance = 1e-2}}, policy);
  const Tensor<B> images({count, 3, 8, 8});
  std::vector<Tensor<B>> masks;
  for (Index i = 0; i < config.branches(); ++i)
    masks.emplace_back(Shape{count, config.channels_of(i), 1, 1});
  Labels<B> labels;
  Replay replay;
  Trained trained;
  for (std::uint32_t step = 0; step < steps; ++step) {
    const auto put = [](const std::vector<S>& from, const Tensor<B>& to) {
      B::upload_bytes(to.data(), from.data(), from.size() * sizeof(S));
    };
    const auto pixels = deq_test::Noise(10 + step).vector(images.size());
    put({pixels.begin(), pixels.end()}, images);
    for (std::size_t i = 0; i < masks.size(); ++i)
      put(dropout_mask<B>(masks[i].shape(), 0.3, {1, step, static_cast<std::uint32_t>(i)})
              .to_host(),
          masks[i]);
    labels.assign(std::vector<Index>{static_cast<Index>(step), 3, 9});
    adam.begin_step(0.01);
    replay([&] {
      classifier.train(images, labels, masks);
      adam.apply(model.parameters());
    });
    trained.losses.push_back(classifier.last_report().loss);
    CHECK(classifier.last_report().solve.samples.size() == count);
  }
  for (const Parameter<B>& p : model.parameters()) {
    trained.gradients.push_back(host(p.grad));
    trained.weights.push_back(host(p.value));
  }
  for (const BatchNormState<B>& n : model.batch_norms()) {
    trained.statistics.push_back(host(n.running_mean));
    trained.statistics.push_back(host(n.running_var));
    trained.batches.push_back(n.batches);
  }
  return trained;
}

/// ||a - b|| / ||b||, of all numbers together.
double error_of_all(const std::vector<std::vector<double>>& a,
                    const std::vector<std::vector<double>>& b) {
  double error = 0, scale = 0;
  for (std::size_t i = 0; i < b.size(); ++i)
    for (std::size_t k = 0; k < b[i].size(); ++k) {
      error += (a[i][k] - b[i][k]) * (a[i][k] - b[i][k]);
      scale += b[i][k] * b[i][k];
    }
  return std::sqrt(error / scale);
}

template <class Policy>
void check(const Policy& policy) {
  const Trained cpu = train<Cpu<double>, HostWork::Replay>(policy);
  const Trained direct = train<Cuda<double>, HostWork::Replay>(policy);
  const Trained recorded = train<Cuda<double>, cuda::Replay>(policy);
  CHECK(relative_error(direct.losses, cpu.losses) < 1e-9);
  for (std::size_t i = 0; i < cpu.weights.size(); ++i)
    CHECK(relative_error(direct.weights[i], cpu.weights[i]) < 1e-7);
  for (std::size_t i = 0; i < cpu.statistics.size(); ++i)
    CHECK(relative_error(direct.statistics[i], cpu.statistics[i]) < 1e-9);
  CHECK(direct.batches == cpu.batches);

  CHECK(recorded.losses == direct.losses);
  CHECK(recorded.weights == direct.weights);
  CHECK(recorded.statistics == direct.statistics);
  CHECK(recorded.batches == direct.batches);
}

}  // namespace

TEST_CASE("A training on the GPU is the training on the CPU, recorded or not") {
  check(Gdeq{});
  check(Unrolled{3});
}

TEST_CASE("A training with images stored as bfloat16 stays near, recorded or not") {
  using B = Cuda<float, cuda::Bf16>;
  const Trained exact = train<Cpu<double>, HostWork::Replay>(Gdeq{});
  const Trained direct = train<B, HostWork::Replay>(Gdeq{});
  const Trained recorded = train<B, cuda::Replay>(Gdeq{});
  // After one step only its own rounding counts; later ones have learned from it. In the gradients
  // it is a hundred times as much, since what the pixels of the last image have in common does not
  // pass its norm; with tf32's, an eighth of it, they are that much nearer. (The weights say less:
  // Adam's first step is nearly the sign of a gradient.)
  const Trained exact_first = train<Cpu<double>, HostWork::Replay>(Gdeq{}, 1),
                first = train<B, HostWork::Replay>(Gdeq{}, 1),
                finer = train<Cuda<float, cuda::Tf32>, HostWork::Replay>(Gdeq{}, 1);
  CHECK(relative_error(first.losses, exact_first.losses) < 0x1p-8);
  CHECK(error_of_all(first.gradients, exact_first.gradients) < 0.5);
  CHECK(error_of_all(finer.gradients, exact_first.gradients) < 0.5 / 4);
  CHECK(error_of_all(first.statistics, exact_first.statistics) < 0x1p-11);
  CHECK(first.batches == exact_first.batches);
  CHECK(relative_error(direct.losses, exact.losses) < 0x1p-3);
  CHECK(recorded.losses == direct.losses);
  CHECK(recorded.weights == direct.weights);
#ifdef DEQ_CUDA_EMULATION
  // Branches that run side by side, in another order.
  for (const auto order : {deq_emulation::Order::backward, deq_emulation::Order::shuffled}) {
    deq_emulation::set_order(order);
    const Trained again = train<B, cuda::Replay>(Gdeq{});
    deq_emulation::set_order(deq_emulation::Order::forward);
    CHECK(again.losses == direct.losses);
    CHECK(again.weights == direct.weights);
  }
#endif
}

TEST_CASE("Images are cut on the GPU as on the CPU") {
  const ImageOptions options{.height = 6, .width = 5, .padding = 2};
  const ImageTransform<Cpu<float>> cpu(options);
  const ImageTransform<Cuda<float>> device(options);
  std::vector<std::uint8_t> bytes;
  for (Index i = 0; i < 4 * cpu.image_size(); ++i)
    bytes.push_back(static_cast<std::uint8_t>(i * 37 % 256));
  const Array<Cuda<float>, std::uint8_t> there(static_cast<Index>(bytes.size()));
  Cuda<float>::upload_bytes(there.data(), bytes.data(), bytes.size());
  const std::vector<std::uint32_t> samples{2, 0, 3, 2, 1};
  const Tensor<Cpu<float>> expected({5, 3, 6, 5});
  const Tensor<Cuda<float>> got({5, 3, 6, 5});
  const auto size = static_cast<std::size_t>(got.size());
  for (const bool augmented : {false, true}) {
    const auto cut = [&](const auto& transform, const std::uint8_t* images, float* out) {
      if (augmented)
        transform.augmented({images, bytes.size()}, samples, 4, 2, {out, size});
      else
        transform.plain({images, bytes.size()}, samples, {out, size});
    };
    cut(cpu, bytes.data(), expected.data());
    cut(device, there.data(), got.data());
    CHECK(got.to_host() == expected.to_host());
  }
}
