// SPDX-License-Identifier: MIT
// The CPU kernels compiled once, for programs of several sources, all with the same options. Where
// DEQ_COMPILED_KERNELS is defined, the kernels in float and double are taken to be in the one
// source that defines DEQ_COMPILE_KERNELS; without either, every source compiles those that it
// uses.
#pragma once

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

#define DEQ_KERNELS_IN(S)                                                                          \
  DEQ_KERNEL struct Cpu<S>;                                                                        \
  DEQ_KERNEL void gemm(Cpu<S>, const GemmGeometry&, const S*, const S*, S*, bool);                 \
  DEQ_KERNEL Index gemm_packed_size(Cpu<S>, Index, Index);                                         \
  DEQ_KERNEL void gemm_pack(Cpu<S>, Index, Index, bool, const S*, S*);                             \
  DEQ_KERNEL void gemm_packed(Cpu<S>, Index, Index, Index, const S*, const S*, S*, bool);          \
  DEQ_KERNEL void conv2d_forward(Cpu<S>, const Conv2dGeometry&, const S*, const S*, const S*, S*); \
  DEQ_KERNEL void conv2d_vjp_input(Cpu<S>, const Conv2dGeometry&, const S*, const S*, S*, bool);   \
  DEQ_KERNEL void conv2d_vjp_weight(Cpu<S>, const Conv2dGeometry&, const S*, const S*, S*, bool);  \
  DEQ_KERNEL Index nhwc_packed_size(Cpu<S>, const Conv2dGeometry&, bool);                          \
  DEQ_KERNEL void nhwc_pack(Cpu<S>, const Conv2dGeometry&, bool, const S*, S*);                    \
  DEQ_KERNEL void nhwc_conv2d(Cpu<S>, const Conv2dGeometry&, const S*, const S*,                   \
                              const NhwcConvParts<S>&, S*);                                        \
  DEQ_KERNEL void nhwc_conv2d_vjp_input(Cpu<S>, const Conv2dGeometry&, const S*, const S*, S*,     \
                                        bool);                                                     \
  DEQ_KERNEL void nhwc_conv2d_vjp_weight(Cpu<S>, const Conv2dGeometry&, const S*, const S*, S*,    \
                                         bool);                                                    \
  DEQ_KERNEL void nhwc_conv2d_statistics(Cpu<S>, const Conv2dGeometry&, const NormGeometry&,       \
                                         const S*, const S*, const NhwcConvParts<S>&, S*,          \
                                         const NormStatistics<S>&);                                \
  DEQ_KERNEL void nhwc_statistics(Cpu<S>, const NormGeometry&, const S*,                           \
                                  const NormStatistics<S>&);                                       \
  DEQ_KERNEL void nhwc_normalize(Cpu<S>, const NhwcNorm<S>&, const S*, const S*, S*);              \
  DEQ_KERNEL void nhwc_normalize_vjp_sums(Cpu<S>, const NhwcNorm<S>&, const S*, const S*,          \
                                          const S*, S*, S*);                                       \
  DEQ_KERNEL void nhwc_normalize_vjp(Cpu<S>, const NhwcNorm<S>&, const S*, const S*, const S*,     \
                                     const S*, const S*, const S*, NhwcSink<S>, NhwcSink<S>, S*);  \
  DEQ_KERNEL void nhwc_transpose(Cpu<S>, Index, Index, Index, const S*, S*, bool);                 \
  DEQ_KERNEL void nhwc_upsample_add(Cpu<S>, const NhwcUpsampling&, const S*, const S*, S*);        \
  DEQ_KERNEL void nhwc_upsample_add_vjp(Cpu<S>, const NhwcUpsampling&, const S*, const S*,         \
                                        NhwcSink<S>, NhwcSink<S>);                                 \
  DEQ_KERNEL void group_statistics(Cpu<S>, const NormGeometry&, S, const S*, S*, S*);              \
  DEQ_KERNEL void batch_statistics(Cpu<S>, const NormGeometry&, const S*, S*, S*);                 \
  DEQ_KERNEL void normalize(Cpu<S>, const NormGeometry&, const S*, const S*, const S*, const S*,   \
                            const S*, S*);                                                         \
  DEQ_KERNEL void normalize_vjp_weight(Cpu<S>, const NormGeometry&, const S*, const S*, const S*,  \
                                       const S*, S*, bool);                                        \
  DEQ_KERNEL void group_norm_vjp_input(Cpu<S>, const NormGeometry&, const S*, const S*, const S*,  \
                                       const S*, const S*, S*, bool);                              \
  DEQ_KERNEL void batch_norm_vjp_input(Cpu<S>, const NormGeometry&, bool, const S*, const S*,      \
                                       const S*, const S*, const S*, S*, bool);                    \
  DEQ_KERNEL void weight_norm_forward(Cpu<S>, Index, Index, const S*, const S*, S*, S*);           \
  DEQ_KERNEL void weight_norm_vjp_v(Cpu<S>, Index, Index, const S*, const S*, const S*, const S*,  \
                                    S*, bool);                                                     \
  DEQ_KERNEL void weight_norm_vjp_g(Cpu<S>, Index, Index, const S*, const S*, const S*, S*, bool);

DEQ_KERNELS_IN(float)
DEQ_KERNELS_IN(double)

#undef DEQ_KERNELS_IN
#undef DEQ_KERNEL

}  // namespace deq
#endif
