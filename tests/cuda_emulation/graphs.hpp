// SPDX-License-Identifier: MIT
// Stream capture and graphs of the runtime API.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "executor.hpp"
#include "order.hpp"
#include "runtime.hpp"
#include "types.hpp"

struct CUgraphExec_st {
  std::unique_ptr<CUgraph_st> graph;
};

namespace deq_emulation {

/// What a conditional node asks. Handles are indices + 1.
struct Condition {
  cudaGraph_t graph;  // Where the node has to be. Only compared: it may be gone.
  unsigned value = 0;
  unsigned launch_value = 0;
  bool assign_at_launch = false;
  bool has_node = false;
};
inline std::vector<Condition> conditions;

inline Condition* find_condition(cudaGraphConditionalHandle handle) {
  return handle == 0 || handle > conditions.size() ? nullptr : &conditions[handle - 1];
}

inline std::unique_ptr<CUgraph_st> clone(const CUgraph_st& graph) {
  auto copy = std::make_unique<CUgraph_st>();
  copy->conditions = graph.conditions;
  for (const auto& node : graph.nodes) {
    auto twin = std::make_unique<CUgraphNode_st>();
    twin->index = node->index;
    twin->dependencies = node->dependencies;
    twin->work = node->work;
    twin->conditional = node->conditional;
    for (const auto& body : node->bodies) twin->bodies.push_back(clone(*body));
    copy->nodes.push_back(std::move(twin));
  }
  return copy;
}

inline void reset_conditions(const CUgraph_st& graph) {
  for (const cudaGraphConditionalHandle handle : graph.conditions) {
    Condition& condition = *find_condition(handle);
    if (condition.assign_at_launch) condition.value = condition.launch_value;
  }
  for (const auto& node : graph.nodes)
    for (const auto& body : node->bodies) reset_conditions(*body);
}

/// Runs every node after its dependencies; the schedule chooses between nodes that may run.
inline void run_graph(const CUgraph_st& graph);

inline void run_node(const CUgraphNode_st& node) {
  if (node.work) return node.work();
  const cudaConditionalNodeParams& p = node.conditional;
  const auto value = [&p] { return find_condition(p.handle)->value; };
  if (p.type == cudaGraphCondTypeIf) {
    const std::size_t which = value() != 0 ? 0 : 1;
    if (which < node.bodies.size()) run_graph(*node.bodies[which]);
  } else {
    for (int rounds = 0; value() != 0; ++rounds) {
      if (rounds == 1000000) fail("a WHILE node does not end");
      run_graph(*node.bodies[0]);
    }
  }
}

inline void run_graph(const CUgraph_st& graph) {
  const std::size_t n = graph.nodes.size();
  std::vector<std::size_t> missing(n), ready;
  std::vector<std::vector<std::size_t>> dependents(n);
  for (std::size_t i = 0; i < n; ++i) {
    missing[i] = graph.nodes[i]->dependencies.size();
    for (const std::size_t d : graph.nodes[i]->dependencies) dependents[d].push_back(i);
    if (missing[i] == 0) ready.push_back(i);
  }
  while (!ready.empty()) {
    const std::size_t which = schedule.pick(ready), i = ready[which];
    ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(which));
    run_node(*graph.nodes[i]);
    for (const std::size_t d : dependents[i])
      if (--missing[d] == 0) ready.push_back(d);
  }
}

inline cudaError_t begin_capture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  // The legacy stream cannot be captured.
  if (!stream) return cudaErrorStreamCaptureUnsupported;
  if (stream->capture.status != cudaStreamCaptureStatusNone) return cudaErrorIllegalState;
  runtime.begin_capture(*stream, mode);
  return cudaSuccess;
}

/// Whether all of `nodes` are nodes of `graph`, connected by edges that are plain dependencies.
inline cudaError_t check_dependencies(const CUgraph_st& graph, const cudaGraphNode_t* nodes,
                                      const cudaGraphEdgeData* edges, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    if (!is_node_of(graph, nodes[i])) return cudaErrorInvalidValue;
    if (edges && (edges[i].from_port != 0 || edges[i].to_port != 0 || edges[i].type != 0))
      return cudaErrorNotSupported;
  }
  return cudaSuccess;
}

}  // namespace deq_emulation

// Capture -----------------------------------------------------------------------------------------

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (const cudaError_t error = begin_capture(stream, mode)) return runtime.result(error);
  stream->capture.own_graph = std::make_unique<CUgraph_st>();
  stream->capture.graph = stream->capture.own_graph.get();
  return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph,
                                                 const cudaGraphNode_t* dependencies,
                                                 const cudaGraphEdgeData* edges, std::size_t n,
                                                 cudaStreamCaptureMode mode) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!graph) return runtime.result(cudaErrorInvalidValue);
  cudaError_t error = check_dependencies(*graph, dependencies, edges, n);
  if (!error) error = begin_capture(stream, mode);
  if (error) return runtime.result(error);
  stream->capture.graph = graph;
  stream->capture.dependencies.assign(dependencies, dependencies + n);
  return cudaSuccess;
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (graph) *graph = nullptr;
  if (!stream || stream->capture.status == cudaStreamCaptureStatusNone)
    return runtime.result(cudaErrorIllegalState);
  const bool valid = stream->capture.status == cudaStreamCaptureStatusActive;
  if (valid && graph) {
    *graph = stream->capture.graph;
    // From here on the caller's, until cudaGraphDestroy.
    static_cast<void>(stream->capture.own_graph.release());
  }
  runtime.end_capture(*stream);
  return runtime.result(valid ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  *status = runtime.stream(stream).capture.status;
  return cudaSuccess;
}

inline cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                            unsigned long long* id = nullptr,
                                            cudaGraph_t* graph = nullptr,
                                            const cudaGraphNode_t** dependencies = nullptr,
                                            const cudaGraphEdgeData** edges = nullptr,
                                            std::size_t* n = nullptr) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  const Capture& capture = runtime.stream(stream).capture;
  *status = capture.status;
  if (id) *id = capture.id;
  if (graph) *graph = capture.graph;
  if (dependencies) *dependencies = capture.dependencies.data();
  if (edges) *edges = nullptr;
  if (n) *n = capture.dependencies.size();
  return cudaSuccess;
}

inline cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t stream,
                                                       cudaGraphNode_t* dependencies,
                                                       const cudaGraphEdgeData* edges,
                                                       std::size_t n, unsigned flags = 0) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  Capture& capture = runtime.stream(stream).capture;
  if (capture.status != cudaStreamCaptureStatusActive) return runtime.result(cudaErrorIllegalState);
  if (const cudaError_t error = check_dependencies(*capture.graph, dependencies, edges, n))
    return runtime.result(error);
  if (flags == cudaStreamSetCaptureDependencies) capture.dependencies.clear();
  capture.dependencies.insert(capture.dependencies.end(), dependencies, dependencies + n);
  return cudaSuccess;
}

// Graphs ------------------------------------------------------------------------------------------

inline cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new CUgraph_st;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  // The body of a conditional node belongs to the node.
  if (!graph || graph->is_body) return runtime.result(cudaErrorInvalidValue);
  delete graph;
  return cudaSuccess;
}

inline cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle,
                                                    cudaGraph_t graph, unsigned launch_value = 0,
                                                    unsigned flags = 0) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  *handle = 0;
  if (!graph) return runtime.result(cudaErrorInvalidValue);
  conditions.push_back({.graph = graph,
                        .launch_value = launch_value,
                        .assign_at_launch = flags == cudaGraphCondAssignDefault});
  *handle = conditions.size();
  graph->conditions.push_back(*handle);
  return cudaSuccess;
}

/// Device code.
inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  using namespace deq_emulation;
  Condition* condition = find_condition(handle);
  if (!condition) executor.give_up("cudaGraphSetConditional of an invalid handle");
  condition->value = value;
}

/// Conditional nodes only, of the types IF and WHILE; the others come from captures.
inline cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph,
                                    const cudaGraphNode_t* dependencies,
                                    const cudaGraphEdgeData* edges, std::size_t n,
                                    cudaGraphNodeParams* parameters) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!graph || !node || !parameters) return runtime.result(cudaErrorInvalidValue);
  if (const cudaError_t error = check_dependencies(*graph, dependencies, edges, n))
    return runtime.result(error);
  cudaConditionalNodeParams& p = parameters->conditional;
  if (parameters->type != cudaGraphNodeTypeConditional || p.type == cudaGraphCondTypeSwitch)
    return runtime.result(cudaErrorNotSupported);
  Condition* condition = find_condition(p.handle);
  const unsigned max_size = p.type == cudaGraphCondTypeIf ? 2 : 1;
  if (!condition || condition->graph != graph || condition->has_node || p.size < 1 ||
      p.size > max_size)
    return runtime.result(cudaErrorInvalidValue);
  condition->has_node = true;
  CUgraphNode_st& added = append_node(*graph, {dependencies, dependencies + n});
  for (unsigned i = 0; i < p.size; ++i) {
    added.bodies.push_back(std::make_unique<CUgraph_st>());
    added.bodies.back()->is_body = true;
    added.body_handles.push_back(added.bodies.back().get());
  }
  p.phGraph_out = added.body_handles.data();
  added.conditional = p;
  *node = &added;
  return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                        unsigned long long = 0) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  *executable = nullptr;
  if (!graph) return runtime.result(cudaErrorInvalidValue);
  *executable = new CUgraphExec_st{clone(*graph)};
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  using namespace deq_emulation;
  const Lock lock(runtime.mutex);
  if (!executable) return runtime.result(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = runtime.not_capturable(stream)) return runtime.result(error);
  return runtime.result(runtime.submit(stream, [&graph = *executable->graph] {
    reset_conditions(graph);
    run_graph(graph);
  }));
}
