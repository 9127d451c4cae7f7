// SPDX-License-Identifier: MIT
// The CPU kernels compiled once, for programs of several sources, all with the same options. Where
// DEQ_COMPILED_KERNELS is defined, the kernels in float and double are taken to be in the one
// source that defines DEQ_COMPILE_KERNELS; without either, every source compiles those that it
// uses.
#pragma once

#include <deq/backend/compiled_kernels.hpp>
#include <deq/backend/cpu/conv.hpp>
#include <deq/backend/cpu/cpu.hpp>
#include <deq/backend/cpu/gemm.hpp>
#include <deq/backend/cpu/nhwc.hpp>
#include <deq/backend/cpu/norm.hpp>
#include <deq/backend/cpu/packed_gemm.hpp>

#if defined(DEQ_COMPILE_KERNELS)
#define DEQ_KERNEL template
#elif defined(DEQ_COMPILED_KERNELS)
#define DEQ_KERNEL extern template
#endif

#ifdef DEQ_KERNEL
namespace deq {

#define DEQ_KERNELS_IN(S)         \
  DEQ_SCALAR_KERNELS(Cpu<S>, S)   \
  DEQ_IMAGE_KERNELS(Cpu<S>, S, S) \
  DEQ_PRODUCT_KERNELS(Cpu<S>, S)  \
  DEQ_CONVOLUTION_KERNELS(Cpu<S>, S, S)

DEQ_KERNELS_IN(float)
DEQ_KERNELS_IN(double)

#undef DEQ_KERNELS_IN
#undef DEQ_KERNEL

}  // namespace deq
#endif
