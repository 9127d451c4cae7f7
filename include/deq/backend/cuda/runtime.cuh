// SPDX-License-Identifier: MIT
// The CUDA runtime as the backend uses it: one stream, errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <deq/core/error.hpp>

#ifndef DEQ_CUDA_EMULATION
#ifndef __CUDACC__
#error "deq: a source that includes deq/backend/cuda is compiled by nvcc"
#elif CUDART_VERSION < 13000
#error "deq: CUDA needs version 13 of the toolkit"
#elif !defined(__CUDACC_EXTENDED_LAMBDA__) || !defined(__CUDACC_RELAXED_CONSTEXPR__)
#error "deq: CUDA needs nvcc's --extended-lambda and --expt-relaxed-constexpr"
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "deq: CUDA needs an architecture from sm_80 on, by nvcc's -arch"
#endif
#endif

namespace deq::cuda {

/// Throws DeviceError unless a call of the runtime succeeded; `what` says what was tried.
inline void check(cudaError_t status, const char* what) {
  require<DeviceError>(status == cudaSuccess, "CUDA: ", what, ": ", cudaGetErrorString(status));
}

/// True if there is a device to run on.
inline bool available() {
  int devices = 0;
  const bool found = cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0;
  if (!found) cudaGetLastError();  // the answer is no; it is not to be found by the next check
  return found;
}

namespace detail {
inline cudaStream_t new_stream() {
  cudaStream_t made = nullptr;
  check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "create a stream");
  return made;
}
inline cudaStream_t& working_stream() {
  static cudaStream_t stream = new_stream();
  return stream;
}
/// What this thread records into, or null.
inline cudaStream_t& recorded_stream() {
  static thread_local cudaStream_t stream = nullptr;
  return stream;
}
}  // namespace detail

/// The stream on which everything runs, whichever thread hands it over. Memory that is given back
/// is used again at once, for work that comes later in this stream. A thread that records has one
/// of its own meanwhile, in which nothing runs.
inline cudaStream_t stream() {
  const cudaStream_t recorded = detail::recorded_stream();
  return recorded ? recorded : detail::working_stream();
}
/// Waits for all work that has been handed to the device.
inline void synchronize() { check(cudaStreamSynchronize(stream()), "wait for the stream"); }
/// Runs everything from now on in a stream of the caller's; waits for what the old one has to do.
inline void set_stream(cudaStream_t stream) {
  require<DeviceError>(stream != nullptr, "CUDA: the default stream cannot be recorded");
  synchronize();
  detail::working_stream() = stream;
}

}  // namespace deq::cuda
