// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <span>

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

/// As many parameters as one launch is told of.
template <class S>
struct AdamTensors {
  static constexpr int most = 64;
  int count = 0;
  AdamTensor<S> tensor[most];
  Index first_block[most];  ///< of each
};

template <class S>
__global__ void __launch_bounds__(threads) adam_kernel(AdamStep<S> step, AdamTensors<S> tensors) {
  int k = tensors.count - 1;
  while (tensors.first_block[k] > static_cast<Index>(blockIdx.x)) --k;
  const AdamTensor<S>& t = tensors.tensor[k];
  const S rate = step.numbers[0], root = step.numbers[1];
  const Index first = (blockIdx.x - tensors.first_block[k]) * chunk + threadIdx.x;
  for (int n = 0; n < numbers_a_thread; ++n) {
    const Index i = first + n * threads;
    if (i < t.n) step(t, i, rate, root);
  }
}

}  // namespace cuda

/// One step of Adam for every parameter; few launches for all of them.
template <class S>
void adam_step(Cuda<S>, const AdamStep<S>& step, std::span<const AdamTensor<S>> all) {
  for (std::size_t first = 0; first < all.size(); first += cuda::AdamTensors<S>::most) {
    cuda::AdamTensors<S> tensors;
    Index blocks = 0;
    const std::size_t last = std::min<std::size_t>(all.size(), first + tensors.most);
    for (std::size_t i = first; i < last; ++i) {
      tensors.tensor[tensors.count] = all[i];
      tensors.first_block[tensors.count++] = blocks;
      blocks += cuda::divide_up(all[i].n, cuda::chunk);
    }
    cuda::launch({.x = blocks}, cuda::adam_kernel<S>, step, tensors);
  }
}

}  // namespace deq
