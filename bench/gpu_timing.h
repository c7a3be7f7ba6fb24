// What the GPU benchmarks measure with: launches recorded as a graph, and the median of their replays.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <vector>

#include "octavo/quant/cuda/device.h"

namespace octavo::cuda {

// What `record` launches on the stream, as a graph.
class RecordedGraph {
 public:
  template <typename Record>
  RecordedGraph(cudaStream_t stream, const Record& record) : stream_(stream) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin of a capture");
    record();
    check(cudaStreamEndCapture(stream, &graph), "end of a capture");
    check(cudaGraphInstantiate(&exec_, graph, 0), "making of a graph");
    check(cudaGraphDestroy(graph), "end of a graph");
  }
  ~RecordedGraph() { cudaGraphExecDestroy(exec_); }
  RecordedGraph(const RecordedGraph&) = delete;
  RecordedGraph& operator=(const RecordedGraph&) = delete;

  void launch() const { check(cudaGraphLaunch(exec_, stream_), "launch of a graph"); }

  // Milliseconds of `launches` one after the other: the median of `counted` such runs after `warm` that are
  // not counted.
  double median_ms(int warm, int counted, int launches = 1) const {
    cudaEvent_t begin = nullptr;
    cudaEvent_t end = nullptr;
    check(cudaEventCreate(&begin), "event");
    check(cudaEventCreate(&end), "event");
    std::vector<float> times;
    for (int run = 0; run < warm + counted; ++run) {
      check(cudaEventRecord(begin, stream_), "event");
      for (int i = 0; i < launches; ++i) launch();
      check(cudaEventRecord(end, stream_), "event");
      check(cudaStreamSynchronize(stream_), "replay");
      float ms = 0;
      check(cudaEventElapsedTime(&ms, begin, end), "event");
      if (run >= warm) times.push_back(ms);
    }
    check(cudaEventDestroy(begin), "event");
    check(cudaEventDestroy(end), "event");
    const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }

 private:
  cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace octavo::cuda
