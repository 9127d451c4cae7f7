// SPDX-License-Identifier: MIT
// What the device is, and the least that it lets work take.
#pragma once

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include <deq/tape/tensor.hpp>

#include "timing.cuh"

namespace gpu_bench {

/// Published peaks, dense, without sparsity: TFLOP/s of bf16 and tf32 on tensor cores and of float
/// on the ordinary units, TB/s of the memory. A device whose name has none of these is unknown.
struct Published {
  const char* name;
  double bf16, tf32, strict, bandwidth;
};
constexpr std::array published{
    Published{" H200", 989, 494, 67, 4.8},
    Published{"H100 80GB HBM3", 989, 494, 67, 3.35},
    Published{"A100-SXM4-80GB", 312, 156, 19.5, 2.04},
};

struct Machine {
  std::string name;
  int major = 0, minor = 0, processors = 0, driver = 0, runtime = 0;
  double memory_bytes = 0, l2_bytes = 0;
  const Published* peaks = nullptr;
  double copy_bandwidth = 0;  ///< measured, read and written, bytes a second

  double bandwidth() const { return peaks ? 1e12 * peaks->bandwidth : copy_bandwidth; }
  std::optional<double> peak(const std::string& precision) const {
    if (!peaks) return std::nullopt;
    return 1e12 * (precision == "bf16"   ? peaks->bf16
                   : precision == "tf32" ? peaks->tf32
                                         : peaks->strict);
  }
  /// The least time; nothing where the peak is unknown.
  std::optional<double> floor(double flop, double bytes, const std::string& precision) const {
    const double memory = bytes / bandwidth();
    if (flop == 0) return memory;
    const auto p = peak(precision);
    return p ? std::optional(std::max(flop / *p, memory)) : std::nullopt;
  }
};

inline Machine examine() {
  Machine m;
  cudaDeviceProp properties{};
  deq::cuda::check(cudaGetDeviceProperties(&properties, 0), "ask what the device is");
  m.name = properties.name;
  m.major = properties.major;
  m.minor = properties.minor;
  m.processors = properties.multiProcessorCount;
  m.memory_bytes = static_cast<double>(properties.totalGlobalMem);
#ifdef __CUDACC__  // what the emulated device does not say
  m.l2_bytes = properties.l2CacheSize;
  cudaDriverGetVersion(&m.driver);
  cudaRuntimeGetVersion(&m.runtime);
#endif
  for (const Published& p : published)
    if (m.name.find(p.name) != std::string::npos) m.peaks = &p;
  const Index n = Index{1} << 26;  // more than any second-level cache holds
  const deq::Tensor<Plain> from({n}, 1.f), to({n});
  const double seconds = seconds_of(0.1, [&] {
    Plain::copy_bytes(to.data(), from.data(), static_cast<std::size_t>(n) * sizeof(float));
  });
  m.copy_bandwidth = 2 * float_bytes * static_cast<double>(n) / seconds;
  return m;
}

}  // namespace gpu_bench
