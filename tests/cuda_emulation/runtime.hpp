// SPDX-License-Identifier: MIT
// What the functions of the runtime API share: the lock, the last error, streams and their
// captures.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "arena.hpp"
#include "types.hpp"

/// Work of a graph, or a condition with a body for it.
struct CUgraphNode_st {
  std::size_t index;                      // In the graph.
  std::vector<std::size_t> dependencies;  // Earlier nodes of the graph.
  std::function<void()> work;             // Empty: a conditional node.
  cudaConditionalNodeParams conditional{};
  std::vector<std::unique_ptr<CUgraph_st>> bodies;
  std::vector<cudaGraph_t> body_handles;
};

struct CUgraph_st {
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<cudaGraphConditionalHandle> conditions;
  bool is_body = false;
};

namespace deq_emulation {

struct Capture {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamCaptureMode mode{};
  unsigned long long id = 0;
  std::unique_ptr<CUgraph_st> own_graph;  // Null when capturing to a graph of the caller.
  cudaGraph_t graph = nullptr;
  std::vector<cudaGraphNode_t> dependencies;  // Of the next node.
};

}  // namespace deq_emulation

/// Streams run what they are given at once, unless they capture it.
struct CUstream_st {
  unsigned flags = 0;
  deq_emulation::Capture capture;
};

namespace deq_emulation {

/// A node of `graph` after `dependencies`, which are nodes of it.
inline CUgraphNode_st& append_node(CUgraph_st& graph,
                                   const std::vector<cudaGraphNode_t>& dependencies) {
  auto node = std::make_unique<CUgraphNode_st>();
  node->index = graph.nodes.size();
  for (const CUgraphNode_st* dependency : dependencies)
    node->dependencies.push_back(dependency->index);
  graph.nodes.push_back(std::move(node));
  return *graph.nodes.back();
}

inline bool is_node_of(const CUgraph_st& graph, const CUgraphNode_st* node) {
  return std::any_of(graph.nodes.begin(), graph.nodes.end(),
                     [node](const auto& own) { return own.get() == node; });
}

class Runtime {
 public:
  std::mutex mutex;
  cudaError_t last_error = cudaSuccess;
  int processors = 132;  // A test may have fewer, so that its work is much for them.
  std::map<const void*, std::size_t> shared_limits;  // Of kernels: cudaFuncSetAttribute.
  std::map<const void*, std::size_t> pinned;         // Blocks of cudaMallocHost.

  /// The result of an API function; an error is remembered for cudaGetLastError.
  cudaError_t result(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
  }

  CUstream_st& stream(cudaStream_t stream) { return stream ? *stream : legacy_stream_; }

  /// Does `work` now, or makes it the next node of the graph that the stream captures.
  template <class Work>
  cudaError_t submit(cudaStream_t to, const Work& work) {
    Capture& capture = stream(to).capture;
    if (capture.status == cudaStreamCaptureStatusInvalidated)
      return cudaErrorStreamCaptureInvalidated;
    if (capture.status == cudaStreamCaptureStatusActive) {
      CUgraphNode_st& node = append_node(*capture.graph, capture.dependencies);
      node.work = work;
      capture.dependencies.assign(1, &node);
      return cudaSuccess;
    }
    if (!to && invalidate([](const CUstream_st& s) { return !(s.flags & cudaStreamNonBlocking); }))
      return cudaErrorStreamCaptureImplicit;
    const Arena::Access access(arena);
    work();
    return cudaSuccess;
  }

  /// An error if a capture forbids functions that might wait for it; such a call spoils it.
  cudaError_t unsafe_call() {
    const bool spoilt = invalidate(
        [](const CUstream_st& s) { return s.capture.mode != cudaStreamCaptureModeRelaxed; });
    return spoilt ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
  }

  /// An error if the stream captures, for what no capture can hold.
  cudaError_t not_capturable(cudaStream_t s) {
    return invalidate([&](const CUstream_st& other) { return &other == &stream(s); })
               ? cudaErrorStreamCaptureUnsupported
               : cudaSuccess;
  }

  /// Whether there was any capture; all are spoilt now.
  bool invalidate_all() {
    return invalidate([](const CUstream_st&) { return true; });
  }

  void begin_capture(CUstream_st& s, cudaStreamCaptureMode mode) {
    s.capture.status = cudaStreamCaptureStatusActive;
    s.capture.mode = mode;
    s.capture.id = ++captures_;
    capturing_.push_back(&s);
  }
  void end_capture(CUstream_st& s) {
    s.capture = Capture{};
    std::erase(capturing_, &s);
  }

 private:
  template <class Predicate>
  bool invalidate(Predicate which) {
    bool any = false;
    for (CUstream_st* s : capturing_) {
      if (!which(*s)) continue;
      s->capture.status = cudaStreamCaptureStatusInvalidated;
      any = true;
    }
    return any;
  }

  CUstream_st legacy_stream_;
  std::vector<CUstream_st*> capturing_;
  unsigned long long captures_ = 0;
};

inline Runtime runtime;

using Lock = std::lock_guard<std::mutex>;

}  // namespace deq_emulation
