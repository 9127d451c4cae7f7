// SPDX-License-Identifier: MIT
// Devices, errors, streams and events of the runtime API.
#pragma once

#include <chrono>
#include <cstring>
#include <memory>

#include "arena.hpp"
#include "executor.hpp"
#include "runtime.hpp"
#include "types.hpp"

struct CUevent_st {
  std::chrono::steady_clock::time_point time;
  bool recorded = false;
};

// Errors ------------------------------------------------------------------------------------------

inline cudaError_t cudaPeekAtLastError() {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.last_error;
}
inline cudaError_t cudaGetLastError() {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return std::exchange(runtime.last_error, cudaSuccess);
}

// Devices -----------------------------------------------------------------------------------------

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(device == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (device != 0) return runtime.result(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = max_block_threads; break;
    case cudaDevAttrMaxGridDimX: *value = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = default_shared_bytes; break;
    case cudaDevAttrWarpSize: *value = warp_size; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = 65536; break;
    case cudaDevAttrMultiProcessorCount: *value = runtime.processors; break;
    case cudaDevAttrL2CacheSize: *value = 50 << 20; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = 2048; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = 228 << 10; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = max_shared_bytes; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = 1 << 10; break;
    case cudaDevAttrMemoryPoolsSupported: *value = 1; break;
    default: return runtime.result(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (device != 0) return runtime.result(cudaErrorInvalidDevice);
  *properties = {.name = "CUDA emulation",
                 .totalGlobalMem = Arena::capacity,
                 .sharedMemPerBlock = default_shared_bytes,
                 .regsPerBlock = 65536,
                 .warpSize = warp_size,
                 .maxThreadsPerBlock = max_block_threads,
                 .maxThreadsDim = {1024, 1024, 64},
                 .maxGridSize = {0x7fffffff, 65535, 65535},
                 .major = 9,
                 .minor = 0,
                 .multiProcessorCount = runtime.processors,
                 .l2CacheSize = 50 << 20,
                 .maxThreadsPerMultiProcessor = 2048,
                 .sharedMemPerMultiprocessor = 228 << 10,
                 .sharedMemPerBlockOptin = max_shared_bytes,
                 .reservedSharedMemPerBlock = 1 << 10,
                 .memoryPoolsSupported = 1};
  return cudaSuccess;
}

inline cudaError_t cudaDeviceSynchronize() {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(runtime.invalidate_all() ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
}

// Streams -----------------------------------------------------------------------------------------

inline cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  *stream = new CUstream_st{.flags = flags, .capture = {}};
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!stream) return runtime.result(cudaErrorInvalidResourceHandle);
  runtime.end_capture(*stream);
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(runtime.not_capturable(stream));
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) { return cudaStreamSynchronize(stream); }

// Events ------------------------------------------------------------------------------------------

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) {
  return cudaEventCreateWithFlags(event, cudaEventDefault);
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
// CUDA can capture these two, to fork and join streams; the emulation cannot.
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (const cudaError_t error = runtime.not_capturable(stream)) return runtime.result(error);
  *event = {.time = std::chrono::steady_clock::now(), .recorded = true};
  return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned = 0) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(runtime.not_capturable(stream));
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  return runtime.result(runtime.unsafe_call());
}
inline cudaError_t cudaEventQuery(cudaEvent_t event) { return cudaEventSynchronize(event); }
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!start->recorded || !end->recorded) return runtime.result(cudaErrorInvalidResourceHandle);
  *milliseconds = std::chrono::duration<float, std::milli>(end->time - start->time).count();
  return cudaSuccess;
}
