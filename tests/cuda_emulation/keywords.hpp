// SPDX-License-Identifier: MIT
// The keywords of CUDA C++ as a host compiler takes them.
#pragma once

#define DEQ_CUDA_EMULATION 1
/// The device is a Hopper, or an Ampere where a test asks for that.
#ifndef DEQ_EMULATED_AMPERE
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
/// Blocks run one after the other, so that one instance serves all of them.
#define __shared__ static
