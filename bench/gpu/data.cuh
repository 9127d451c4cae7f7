// SPDX-License-Identifier: MIT
// Numbers to calculate with.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <deq/core/random.hpp>
#include <deq/tape/tensor.hpp>

#include "timing.cuh"

namespace gpu_bench {

inline std::vector<float> normal_numbers(Index n, std::uint32_t sample, double deviation = 1) {
  deq::Random random(7, deq::Purpose::synthetic_data, 0, sample);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& v : values) v = static_cast<float>(deviation * random.normal());
  return values;
}
template <class B>
deq::Tensor<B> random_normal(const Shape& shape, std::uint32_t sample, double deviation = 1) {
  return deq::Tensor<B>(shape, normal_numbers(shape.size(), sample, deviation));
}
/// Random numbers for a tensor of any size: some that are repeated. Tensor cores draw more power,
/// and run slower, on these than on zeros.
template <class B>
deq::Tensor<B> repeated_normal(const Shape& shape, std::uint32_t sample) {
  const std::vector<float> some = normal_numbers(1 << 16, sample);
  std::vector<float> values(static_cast<std::size_t>(shape.size()));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = some[i % some.size()];
  return deq::Tensor<B>(shape, values);
}

}  // namespace gpu_bench
