// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <deq/backend/cuda/launch.cuh>
#include <deq/backend/cuda/memory.cuh>

namespace deq::cuda {

/// Work of the device that is recorded once and launched as a whole any number of times: a solve,
/// or a training step, costs the host one call, and the device asks the host for nothing on the
/// way. Loops until convergence (Backend's repeat) become conditional nodes of the graph.
///
///     layer.solve(z0, x, theta, solution);  // once, for the memory that it needs
///     cuda::Graph graph([&] { layer.solve(z0, x, theta, solution); });
///     for (...) {
///       ...                                 // new numbers in z0, x and theta
///       graph.launch();
///     }
///     graph.finish();                       // now solution.report is filled
///
/// The work is called once, and launched with the same pointers ever after: objects that it fills
/// (a solution, gradients) have to stay where they are, and are not to be used for anything else as
/// long as the graph is; so are the layers. Numbers that the host computes are those of the
/// recording. It may not upload or download (DeviceError). The device memory that it names stays
/// with the graph, whoever gives it back. Recording throws what the work throws, and DeviceError.
class Graph {
 public:
  template <class Work>
  explicit Graph(Work&& work) {
    require<DeviceError>(recording() == nullptr, "CUDA: a graph is being recorded already");
    synchronize();
    const RecordedStream own;
    check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "begin to record");
    try {
      const Recording scope(*this);
      work();
    } catch (...) {
      cudaGraph_t graph = nullptr;
      cudaStreamEndCapture(stream(), &graph);
      if (graph) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    cudaGraph_t graph = nullptr;
    check(cudaStreamEndCapture(stream(), &graph), "record");
    graph_.reset(graph);
    cudaGraphExec_t executable = nullptr;
    check(cudaGraphInstantiate(&executable, graph, cudaGraphInstantiateFlagUseNodePriority),
          "instantiate a graph");
    executable_.reset(executable);
    memory_.settle();
  }
  ~Graph() {
    if (launched_) cudaStreamSynchronize(detail::working_stream());
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  /// Hands the work to the stream; finishes the last launch first.
  void launch() {
    finish();
    check(cudaGraphLaunch(executable_.get(), stream()), "launch a graph");
    launched_ = true;
  }
  /// Waits for the last launch, if it has not been waited for; then the reports are there.
  void finish() {
    if (!std::exchange(launched_, false)) return;
    synchronize();
    for (const std::function<void()>& work : when_done_) work();
  }
  /// Bytes of the device that belong to the graph.
  std::size_t bytes() const { return memory_.bytes(); }

  /// The graph that this thread is recording, or null.
  static Graph*& recording() {
    static thread_local Graph* graph = nullptr;
    return graph;
  }
  void when_done(std::function<void()> work) { when_done_.push_back(std::move(work)); }
  /// The numbers arrive in a place of their own.
  template <class T, class Work>
  void when_downloaded(const T* from, Index n, Work work) {
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(T);
    void* place = nullptr;
    check(cudaMallocHost(&place, std::max<std::size_t>(bytes, 1)), "allocate host memory");
    const std::shared_ptr<void> host(place, [](void* p) { cudaFreeHost(p); });
    if (bytes)
      check(cudaMemcpyAsync(place, from, bytes, cudaMemcpyDeviceToHost, stream()),
            "record a copy to the host");
    when_done([host, n, work] {
      work(std::span<const T>(static_cast<const T*>(host.get()), static_cast<std::size_t>(n)));
    });
  }
  /// work() while there is anybody in `a`, which the work filters in place.
  template <class Work>
  void repeat(const Samples& a, Work&& work);
  /// work(i), i < n, each after what is recorded so far, and none after another.
  template <class Work>
  void side_by_side(Index n, Work&& work, Lanes& lanes);
  /// The same for works that ask for no memory; within those of side_by_side, too.
  template <class Work>
  void at_once(Index n, Work&& work);

 private:
  /// Where the recording is: the graph, and what the next node comes after.
  struct Position {
    cudaGraph_t graph = nullptr;
    std::vector<cudaGraphNode_t> after;

    static Position now() {
      cudaStreamCaptureStatus status{};
      unsigned long long id = 0;
      const cudaGraphNode_t* nodes = nullptr;
      const cudaGraphEdgeData* edges = nullptr;
      std::size_t count = 0;
      Position here;
      check(cudaStreamGetCaptureInfo(stream(), &status, &id, &here.graph, &nodes, &edges, &count),
            "see what is recorded");
      here.after.assign(nodes, nodes + count);
      return here;
    }
    void go_on_from_here() {
      check(cudaStreamUpdateCaptureDependencies(stream(), after.data(), nullptr, after.size(),
                                                cudaStreamSetCaptureDependencies),
            "go on elsewhere in a graph");
    }
  };

  /// While it lives, this thread records into a stream that is new.
  class RecordedStream {
   public:
    RecordedStream()
        : own_(detail::new_stream()), before_(std::exchange(detail::recorded_stream(), own_)) {}
    ~RecordedStream() {
      detail::recorded_stream() = before_;
      cudaStreamDestroy(own_);
    }
    RecordedStream(const RecordedStream&) = delete;
    RecordedStream& operator=(const RecordedStream&) = delete;

   private:
    cudaStream_t own_, before_;
  };
  struct Recording {
    explicit Recording(Graph& graph) {
      recording() = &graph;
      GraphMemory::recorded() = &graph.memory_;
    }
    ~Recording() {
      recording() = nullptr;
      GraphMemory::recorded() = nullptr;
    }
  };
  struct Destroy {
    void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
    void operator()(cudaGraphExec_t executable) const { cudaGraphExecDestroy(executable); }
  };
  template <class Handle>
  using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, Destroy>;

  GraphMemory memory_;
  bool launched_ = false;
  std::vector<std::function<void()>> when_done_;
  Owned<cudaGraph_t> graph_;
  Owned<cudaGraphExec_t> executable_;
};

/// Work that is done again and again with the same pointers: done at once the first time, which
/// finds out what memory it needs, recorded the second, and launched as a whole from then on.
class Replay {
 public:
  static constexpr bool records = true;

  template <class Work>
  void operator()(Work&& work) {
    if (!done_once_) {
      work();
      done_once_ = true;
      return;
    }
    if (!graph_) graph_ = std::make_unique<Graph>(work);
    graph_->launch();
    graph_->finish();
  }

 private:
  bool done_once_ = false;
  std::unique_ptr<Graph> graph_;
};

/// Sets whether a loop goes on: by one warp. A template, as all kernels of headers.
template <int lanes = warp_threads>
__global__ void go_on_kernel(Samples a, cudaGraphConditionalHandle handle) {
  bool anybody = false;
  for (Index first = 0; first < a.count; first += lanes) {
    const Index j = first + threadIdx.x;
    if (__any_sync(0xffffffffu, j < a.count && a[j] >= 0)) anybody = true;
  }
  if (threadIdx.x == 0) cudaGraphSetConditional(handle, anybody ? 1 : 0);
}

template <class Work>
void Graph::repeat(const Samples& a, Work&& work) {
  Position here = Position::now();
  cudaGraphConditionalHandle handle{};
  check(cudaGraphConditionalHandleCreate(&handle, here.graph, 0, 0), "make a condition");
  const auto go_on = [&] { cuda::launch({.block = warp_threads}, go_on_kernel<>, a, handle); };
  go_on();

  here = Position::now();
  cudaGraphNodeParams loop{};
  loop.type = cudaGraphNodeTypeConditional;
  loop.conditional.handle = handle;
  loop.conditional.type = cudaGraphCondTypeWhile;
  loop.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  check(cudaGraphAddNode(&node, here.graph, here.after.data(), nullptr, here.after.size(), &loop),
        "add a loop");

  {
    const RecordedStream inner;
    cudaGraph_t body = loop.conditional.phGraph_out[0];
    check(cudaStreamBeginCaptureToGraph(stream(), body, nullptr, nullptr, 0,
                                        cudaStreamCaptureModeRelaxed),
          "record a loop");
    try {
      work();
      go_on();
    } catch (...) {
      cudaStreamEndCapture(stream(), &body);
      throw;
    }
    check(cudaStreamEndCapture(stream(), &body), "record a loop");
  }
  here.after = {node};
  here.go_on_from_here();
}

template <class Work>
void Graph::side_by_side(Index n, Work&& work, Lanes& which) {
  if (memory_.in_lane()) {  // lanes have no lanes
    for (Index i = 0; i < n; ++i) work(i);
    return;
  }
  GraphMemory::SideBySide lanes(memory_, which, static_cast<std::size_t>(n));
  at_once(n, [&](Index i) {
    lanes.begin_lane();
    work(i);
  });
}

template <class Work>
void Graph::at_once(Index n, Work&& work) {
  Position before = Position::now(), after;
  for (Index i = 0; i < n; ++i) {
    before.go_on_from_here();
    work(i);
    for (const cudaGraphNode_t node : Position::now().after)
      if (std::find(after.after.begin(), after.after.end(), node) == after.after.end())
        after.after.push_back(node);
  }
  if (n > 0) after.go_on_from_here();
}

}  // namespace deq::cuda
