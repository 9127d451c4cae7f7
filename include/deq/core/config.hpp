// SPDX-License-Identifier: MIT
// The only macros of the library.
#pragma once

#if !(defined(__cplusplus) && __cplusplus >= 202002L) && \
    !(defined(_MSVC_LANG) && _MSVC_LANG >= 202002L)
#error "deq needs C++20: compile with -std=c++20 or link the CMake target deq::deq"
#endif

/// Marks a function that solver code runs once a sample: on the host with the CPU backend, inside a
/// kernel with the CUDA backend.
#ifdef __CUDACC__
#define DEQ_HOST_DEVICE __host__ __device__
#else
#define DEQ_HOST_DEVICE
#endif
