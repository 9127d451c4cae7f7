// SPDX-License-Identifier: MIT
// The CUDA kernels compiled once, for programs of several sources: nvcc takes minutes for them.
// Where DEQ_COMPILED_CUDA_KERNELS is defined, those in float, in every precision, and in double are
// taken to be in the one source that defines DEQ_COMPILE_CUDA_KERNELS; without either, every source
// compiles those that it uses. What is made of a caller's function stays in the caller's source:
// elementwise operations, sums over dimensions, the passes of Broyden's method.
#pragma once

#include <deq/backend/compiled_kernels.hpp>
#include <deq/backend/cuda/adam.cuh>
#include <deq/backend/cuda/conv.cuh>
#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/gemm.cuh>
#include <deq/backend/cuda/image.cuh>
#include <deq/backend/cuda/loss.cuh>
#include <deq/backend/cuda/nhwc_conv.cuh>
#include <deq/backend/cuda/nhwc_norm.cuh>
#include <deq/backend/cuda/nhwc_upsample.cuh>
#include <deq/backend/cuda/norm.cuh>
#include <deq/backend/cuda/pool.cuh>
#include <deq/backend/cuda/shape.cuh>

#if defined(DEQ_COMPILE_CUDA_KERNELS)
#define DEQ_KERNEL template
#elif defined(DEQ_COMPILED_CUDA_KERNELS)
#define DEQ_KERNEL extern template
#endif

#ifdef DEQ_KERNEL
namespace deq {

namespace detail {  // a comma ends an argument of a macro
using CudaTf32 = Cuda<float, cuda::Tf32>;
using CudaBf16 = Cuda<float, cuda::Bf16>;
}  // namespace detail

// A basis stored as T.
#define DEQ_BASIS_KERNELS(S, T)                                                                 \
  DEQ_KERNEL void Cuda<S>::project(Samples, BasisView<T>, const Index*, ConstView, S*);         \
  DEQ_KERNEL void Cuda<S>::combine(Samples, BasisView<T>, const Index*, const S*, S, ConstView, \
                                   View);
#define DEQ_COPIES(S, From, To) \
  DEQ_KERNEL void copy_strips(Cuda<S>, const StripGeometry&, const From*, To*, bool);
#define DEQ_KERNELS_IN(S)                                                                        \
  DEQ_SCALAR_KERNELS(Cuda<S>, S)                                                                 \
  DEQ_IMAGE_KERNELS(Cuda<S>, S, S)                                                               \
  DEQ_PRODUCT_KERNELS(Cuda<S>, S)                                                                \
  DEQ_CONVOLUTION_KERNELS(Cuda<S>, S, S)                                                         \
  DEQ_BASIS_KERNELS(S, S)                                                                        \
  DEQ_BASIS_KERNELS(S, Bfloat16)                                                                 \
  DEQ_COPIES(S, S, S)                                                                            \
  DEQ_KERNEL void transpose_matrix(Cuda<S>, Index, Index, const S*, S*, bool);                   \
  DEQ_KERNEL void spread_pixels(Cuda<S>, const PoolGeometry&, S, const S*, S*, bool);            \
  DEQ_KERNEL void collect_pixels(Cuda<S>, const PoolGeometry&, S, const S*, S*, bool);           \
  DEQ_KERNEL void log_softmax_forward(Cuda<S>, Index, Index, const S*, S*);                      \
  DEQ_KERNEL void log_softmax_vjp(Cuda<S>, Index, Index, const S*, const S*, S*, bool);          \
  DEQ_KERNEL void softmax_vjp(Cuda<S>, Index, Index, const S*, const S*, S*, bool);              \
  DEQ_KERNEL void cross_entropy_forward(Cuda<S>, Index, Index, const S*, const Index*, S*);      \
  DEQ_KERNEL void cross_entropy_vjp(Cuda<S>, Index, Index, const S*, const Index*, const S*, S*, \
                                    bool);                                                       \
  DEQ_KERNEL void cut_images(Cuda<S>, const ImageGeometry&, Index, const ImageCut*,              \
                             const std::uint8_t*, const S*, S*);                                 \
  DEQ_KERNEL void adam_step(Cuda<S>, const AdamStep<S>&, std::span<const AdamTensor<S>>);

DEQ_KERNELS_IN(float)
DEQ_KERNELS_IN(double)
DEQ_PRODUCT_KERNELS(detail::CudaTf32, float)
DEQ_PRODUCT_KERNELS(detail::CudaBf16, float)
DEQ_CONVOLUTION_KERNELS(detail::CudaTf32, float, float)
DEQ_CONVOLUTION_KERNELS(detail::CudaBf16, float, float)
DEQ_CONVOLUTION_KERNELS(detail::CudaBf16, float, Bfloat16)
DEQ_IMAGE_KERNELS(Cuda<float>, float, Bfloat16)
DEQ_COPIES(float, float, Bfloat16)
DEQ_COPIES(float, Bfloat16, float)
DEQ_COPIES(float, Bfloat16, Bfloat16)

#undef DEQ_KERNELS_IN
#undef DEQ_COPIES
#undef DEQ_BASIS_KERNELS
#undef DEQ_KERNEL

}  // namespace deq
#endif
