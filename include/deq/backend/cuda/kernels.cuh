// SPDX-License-Identifier: MIT
// The CUDA kernels of all operations in tape/ops.hpp. Operations find the kernels of their backend
// by argument-dependent lookup on its tag, when they are instantiated; neither includes the other.
#pragma once

#include <deq/backend/cuda/adam.cuh>
#include <deq/backend/cuda/broadcast.cuh>
#include <deq/backend/cuda/compiled_kernels.cuh>
#include <deq/backend/cuda/conv.cuh>
#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/elementwise.cuh>
#include <deq/backend/cuda/gemm.cuh>
#include <deq/backend/cuda/image.cuh>
#include <deq/backend/cuda/loss.cuh>
#include <deq/backend/cuda/nhwc_conv.cuh>
#include <deq/backend/cuda/nhwc_norm.cuh>
#include <deq/backend/cuda/nhwc_upsample.cuh>
#include <deq/backend/cuda/norm.cuh>
#include <deq/backend/cuda/pool.cuh>
#include <deq/backend/cuda/shape.cuh>
