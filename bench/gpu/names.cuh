// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/kernels.cuh>
#include <deq/model/mdeq_config.hpp>

namespace gpu_bench {

using deq::Conv2dGeometry;
using deq::Index;
using deq::MdeqConfig;
using deq::Shape;
using deq::cuda::Graph;
using Plain = deq::Cuda<float>;  ///< what does not multiply is the same in every precision

constexpr double float_bytes = sizeof(float);

}  // namespace gpu_bench
