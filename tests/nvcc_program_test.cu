// SPDX-License-Identifier: MIT
// A program for the GPU as nvcc reads it, for every architecture: every header of the backend, and
// through training passes of MDEQ, recorded and not, every kernel in every precision of float. It
// runs where there is a GPU; without one it has only been compiled.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <deq/backend/cuda/kernels.cuh>
#include <deq/backward/implicit.hpp>
#include <deq/layer/equilibrium.hpp>
#include <deq/model/mdeq_classifier.hpp>
#include <deq/nn/adam.hpp>
#include <deq/nn/augment.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/gmres.hpp>

using namespace deq;

/// Three recorded steps on one batch: the losses have to fall.
template <class B>
bool trains() {
  const MdeqConfig config{.channels = {8, 16},
                          .head_channels = {4, 8},
                          .final_channels = 64,
                          .image_size = 16,
                          .expansion = 2};
  Mdeq<B> model(config);
  Adam<B> adam(model.parameters());
  MdeqClassifier<B, Broyden<CompactSteps>, Gdeq> classifier(model);
  const ImageTransform<B> transform({.height = 16, .width = 16});
  const std::vector<std::uint8_t> bytes(4 * 3 * 256, 100);
  const Array<B, std::uint8_t> images(static_cast<Index>(bytes.size()));
  B::upload_bytes(images.data(), bytes.data(), bytes.size());
  const Tensor<B> x({4, 3, 16, 16});
  transform.augmented({images.data(), bytes.size()}, std::vector<std::uint32_t>{0, 1, 2, 3}, 1, 0,
                      {x.data(), static_cast<std::size_t>(x.size())});
  const Labels<B> labels(std::vector<int>{1, 1, 1, 1});
  typename B::Replay replay;
  std::vector<double> losses;
  for (int step = 0; step < 3; ++step) {
    adam.begin_step(1e-2);
    replay([&] {
      classifier.train(x, labels);
      adam.apply(model.parameters());
    });
    losses.push_back(classifier.last_report().loss);
  }
  for (const double loss : losses) std::printf("loss %.4f\n", loss);
  return std::isfinite(losses.back()) && losses.back() < losses.front();
}

/// f as a lambda of the caller's, on NCHW images, with what MDEQ does not use.
template <class B>
bool solves() {
  auto layer = equilibrium<Anderson, Implicit<Gmres>>([](const auto& z, const auto& x,
                                                         const auto& w, const auto& scale) {
    return avg_pool2d(
        upsample_nearest(tanh(group_norm(conv2d(z, w, {.padding = 1}), 2, scale, scale) + x), 2),
        2);
  });
  using S = typename B::Scalar;
  const Tensor<B> z0({2, 4, 5, 5}, S(0)), x({2, 4, 5, 5}, S(1)), w({4, 4, 3, 3}, S(0.1)),
      scale({4}, S(0.1));
  const auto solution = layer.solve(z0, inputs(x), params(w, scale));
  const auto gradient = layer.gradient(solution, x);
  return solution.report.all_converged() &&
         std::isfinite(squared_norm(log_softmax(flatten(gradient.inputs[0]))).item());
}

int main() {
  if (!cuda::available()) {
    std::puts("skipped: there is no GPU");
    return 77;
  }
  const bool right = trains<Cuda<float>>() && trains<Cuda<float, cuda::Tf32>>() &&
                     trains<Cuda<float, cuda::Bf16>>() && solves<Cuda<float>>();
  return right ? 0 : 1;
}
