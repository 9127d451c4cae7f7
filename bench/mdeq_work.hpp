// SPDX-License-Identifier: MIT
// The pieces of work of MDEQ that compare_cases.cpp and mdeq_bench.cpp measure.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <deq/backend/cpu/kernels.hpp>
#include <deq/core/random.hpp>
#include <deq/model/mdeq_classifier.hpp>

namespace bench {

using deq::Index;
using Tensor = deq::Tensor<deq::Cpu<float>>;

inline constexpr int forward_iterations = 18, backward_iterations = 20;

inline Tensor random_normal(const deq::Shape& shape, std::uint32_t sample, double deviation = 1) {
  deq::Random random(7, deq::Purpose::synthetic_data, 0, sample);
  std::vector<float> values(static_cast<std::size_t>(shape.size()));
  for (float& v : values) v = static_cast<float>(deviation * random.normal());
  return Tensor(shape, values);
}

/// Broyden's method with a budget of iterations that nothing cuts short, so that all do the same
/// work.
inline deq::Stopping exactly(int iterations) {
  return {.max_iterations = iterations,
          .relative_tolerance = 0,
          .divergence_factor = INFINITY,
          .stall_window = 0};
}
template <class Storage>
deq::Broyden<Storage> broyden(int iterations) {
  return {.stopping = exactly(iterations), .memory = iterations};
}

/// What f is given in evaluation: the injection, and its parameters.
struct MdeqArguments {
  std::vector<Tensor> x;
  deq::PoolVector<Tensor> theta;

  auto inputs() const { return deq::inputs(std::span<const Tensor>(x)); }
  auto params() const { return deq::params(std::span<const Tensor>(theta)); }
};

/// A freshly initialised network, and a batch of data. As initialised, the f of TINY hardly
/// contracts: an adjoint solve amplifies rounding until no two programs agree. There, biases that
/// outweigh z where the branches are fused make it contract.
struct MdeqWork {
  deq::Mdeq<deq::Cpu<float>> model;
  Tensor images;
  std::vector<Index> labels;
  std::vector<Tensor> masks;

  MdeqWork(const deq::MdeqConfig& config, Index batch)
      : model(config), images(random_normal({batch, 3, 32, 32}, 0)) {
    for (auto& p : model.parameters())
      if (config.branches() == 2 && p.name.ends_with("gnorm.bias"))
        p.value = random_normal(p.value.shape(), 2, 5);
    for (Index n = 0; n < batch; ++n) labels.push_back(n % config.classes);
    for (Index i = 0; i < config.branches(); ++i)
      masks.push_back(deq::dropout_mask<deq::Cpu<float>>({batch, config.channels_of(i), 1, 1},
                                                         config.dropout,
                                                         {.layer = static_cast<std::uint32_t>(i)}));
  }

  Index batch() const { return images.extent(0); }
  /// Where f and its VJP are measured alone.
  Tensor state() const { return random_normal({batch(), model.config().state_size()}, 1); }

  template <class Storage, class Policy>
  deq::MdeqClassifier<deq::Cpu<float>, deq::Broyden<Storage>, Policy> classifier(Policy policy) {
    return deq::MdeqClassifier<deq::Cpu<float>, deq::Broyden<Storage>, Policy>(
        model, broyden<Storage>(forward_iterations), policy);
  }

  MdeqArguments arguments() {
    const auto all = model.values();
    const std::span<const Tensor> values(all);
    return {{model.stem(images, values, deq::BatchNormMode::evaluate)},
            model.layer_parameters(values)};
  }
};

}  // namespace bench
