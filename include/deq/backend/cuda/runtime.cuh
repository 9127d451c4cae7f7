// SPDX-License-Identifier: MIT
// The CUDA runtime as the backend uses it: one stream, errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <deq/core/error.hpp>

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
inline cudaStream_t& current_stream() {
  static cudaStream_t stream = [] {
    cudaStream_t made = nullptr;
    check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "create a stream");
    return made;
  }();
  return stream;
}
}  // namespace detail

/// The stream on which everything runs. Memory that is given back is used again at once, for work
/// that comes later in this stream.
inline cudaStream_t stream() { return detail::current_stream(); }
/// Waits for all work that has been handed to the device.
inline void synchronize() { check(cudaStreamSynchronize(stream()), "wait for the stream"); }
/// Runs everything from now on in a stream of the caller's; waits for what the old one has to do.
inline void set_stream(cudaStream_t stream) {
  require<DeviceError>(stream != nullptr, "CUDA: the default stream cannot be recorded");
  synchronize();
  detail::current_stream() = stream;
}

}  // namespace deq::cuda
