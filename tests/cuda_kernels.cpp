// SPDX-License-Identifier: MIT
// The kernels of the CUDA backend, for all tests that run them, on the emulated device or on a GPU.
#define DEQ_COMPILE_CUDA_KERNELS
#include <deq/backend/cuda/kernels.cuh>
