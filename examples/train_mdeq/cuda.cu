// SPDX-License-Identifier: MIT
#include <deq/backend/cuda/kernels.cuh>

#include "program.hpp"

namespace examples {

int run_on_cuda(const Options& options) {
  deq::require<deq::DeviceError>(deq::cuda::available(), "--device cuda: there is no GPU");
  if (options.precision == "strict") return run_on<deq::Cuda<float>>(options);
  if (options.precision == "tf32") return run_on<deq::Cuda<float, deq::cuda::Tf32>>(options);
  return run_on<deq::Cuda<float, deq::cuda::Bf16>>(options);
}

}  // namespace examples
