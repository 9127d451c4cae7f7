// SPDX-License-Identifier: MIT
// The kernels that a backend may compile once for programs of several sources: what
// cpu/compiled_kernels.hpp and cuda/compiled_kernels.cuh declare or instantiate. DEQ_KERNEL is
// `extern template` or `template`.
#pragma once

#include <span>

/// Products, and convolutions of NCHW images, by a backend B of S.
#define DEQ_PRODUCT_KERNELS(B, S)                                                             \
  DEQ_KERNEL void gemm(B, const GemmGeometry&, const S*, const S*, S*, bool);                 \
  DEQ_KERNEL Index gemm_packed_size(B, Index, Index);                                         \
  DEQ_KERNEL void gemm_pack(B, Index, Index, bool, const S*, S*);                             \
  DEQ_KERNEL void gemm_packed(B, Index, Index, Index, const S*, const S*, S*, bool);          \
  DEQ_KERNEL void conv2d_forward(B, const Conv2dGeometry&, const S*, const S*, const S*, S*); \
  DEQ_KERNEL void conv2d_vjp_input(B, const Conv2dGeometry&, const S*, const S*, S*, bool);   \
  DEQ_KERNEL void conv2d_vjp_weight(B, const Conv2dGeometry&, const S*, const S*, S*, bool);  \
  DEQ_KERNEL Index nhwc_packed_size(B, const Conv2dGeometry&, bool);                          \
  DEQ_KERNEL void nhwc_pack(B, const Conv2dGeometry&, bool, const S*, S*);

/// Convolutions of channels-last images stored as X.
#define DEQ_CONVOLUTION_KERNELS(B, S, X)                                                          \
  DEQ_KERNEL void nhwc_conv2d(B, const Conv2dGeometry&, const X*, const S*,                       \
                              const NhwcConvParts<S, X>&, X*);                                    \
  DEQ_KERNEL void nhwc_conv2d_vjp_input(B, const Conv2dGeometry&, const S*, const X*, X*, bool);  \
  DEQ_KERNEL void nhwc_conv2d_vjp_weight(B, const Conv2dGeometry&, const X*, const X*, S*, bool); \
  DEQ_KERNEL void nhwc_conv2d_statistics(B, const Conv2dGeometry&, const NormGeometry&, const X*, \
                                         const S*, const NhwcConvParts<S, X>&, X*,                \
                                         const NormStatistics<S>&);

/// The other operations on such images.
#define DEQ_IMAGE_KERNELS(B, S, X)                                                                 \
  DEQ_KERNEL void nhwc_statistics(B, const NormGeometry&, const X*, const NormStatistics<S>&);     \
  DEQ_KERNEL void nhwc_normalize(B, const NhwcNorm<S>&, const X*, const X*, X*);                   \
  DEQ_KERNEL void nhwc_normalize_vjp_sums(B, const NhwcNorm<S>&, const X*, const X*, const X*, S*, \
                                          S*);                                                     \
  DEQ_KERNEL void nhwc_normalize_vjp(B, const NhwcNorm<S>&, const X*, const X*, const X*,          \
                                     const S*, const S*, const S*, NhwcSink<X>, NhwcSink<X>, X*);  \
  DEQ_KERNEL void nhwc_upsample_add(B, std::span<const NhwcSmallImage<X>>, const X*, bool, X*);    \
  DEQ_KERNEL void nhwc_upsample_add_vjp(B, const NhwcUpsampling&, const X*, const X*, NhwcSink<X>, \
                                        NhwcSink<X>);

/// The primitives of the solvers, norms and transposes.
#define DEQ_SCALAR_KERNELS(B, S)                                                                   \
  DEQ_KERNEL struct B;                                                                             \
  DEQ_KERNEL void nhwc_transpose(B, Index, Index, Index, const S*, S*, bool);                      \
  DEQ_KERNEL void group_statistics(B, const NormGeometry&, S, const S*, S*, S*);                   \
  DEQ_KERNEL void batch_statistics(B, const NormGeometry&, const S*, S*, S*);                      \
  DEQ_KERNEL void normalize(B, const NormGeometry&, const S*, const S*, const S*, const S*,        \
                            const S*, S*);                                                         \
  DEQ_KERNEL void normalize_vjp_weight(B, const NormGeometry&, const S*, const S*, const S*,       \
                                       const S*, S*, bool);                                        \
  DEQ_KERNEL void group_norm_vjp_input(B, const NormGeometry&, const S*, const S*, const S*,       \
                                       const S*, const S*, S*, bool);                              \
  DEQ_KERNEL void batch_norm_vjp_input(B, const NormGeometry&, bool, const S*, const S*, const S*, \
                                       const S*, const S*, S*, bool);                              \
  DEQ_KERNEL void weight_norm_forward(B, Index, Index, const S*, const S*, S*, S*);                \
  DEQ_KERNEL void weight_norm_vjp_v(B, Index, Index, const S*, const S*, const S*, const S*, S*,   \
                                    bool);                                                         \
  DEQ_KERNEL void weight_norm_vjp_g(B, Index, Index, const S*, const S*, const S*, S*, bool);
