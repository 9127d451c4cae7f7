// SPDX-License-Identifier: MIT
// What the CUDA backend takes on this GPU, beside the least that the hardware allows; run.sh builds
// and starts it.
//
//     gpu_bench [--precision strict|tf32|bf16] [--size tiny|large] [--part
//     convolutions|passes|model|epochs]
//               [--batch N] [--seconds S] [--json FILE] [--export DIR]
//
// The first three may be repeated; left out, each means everything but epochs. Prints a line for
// each measurement to stderr, and one JSON object to stdout or FILE, which is replaced after each
// measurement. --export writes the weights and the data of each size for peer.py, and measures
// nothing. Exits with 77 where there is no GPU.
//
// A floor is the larger of FLOP over the peak of the unit that multiplies, and bytes over the
// bandwidth of the memory: every operand read once, every result written once, as it is stored, in
// float, but in bf16 images as bfloat16. FLOP are the products of the definition, twice. What is
// measured again and again finds in the second-level cache what fits there, as it does between two
// layers of f.

#include <cstdio>
#include <filesystem>
#include <string>

#include "convolutions.cuh"
#include "machine.cuh"
#include "model.cuh"
#include "options.hpp"
#include "passes.cuh"
#include "report.cuh"

namespace gpu_bench {
namespace {

MdeqConfig config_of(const std::string& size) {
  return size == "tiny" ? MdeqConfig::tiny() : MdeqConfig::large();
}

template <class Precision>
constexpr const char* name_of() {
  if (std::is_same_v<Precision, deq::cuda::Bf16>) return "bf16";
  return std::is_same_v<Precision, deq::cuda::Tf32> ? "tf32" : "strict";
}

template <class Precision>
void measure_precision(const Options& o, const Machine& machine, Report& report) {
  using B = deq::Cuda<float, Precision>;
  const std::string precision = name_of<Precision>();
  if (!Options::wants(o.precisions, precision)) return;
  for (const std::string size : {"large", "tiny"}) {
    if (!Options::wants(o.sizes, size)) continue;
    const std::string prefix = precision + "/" + size + "/";
    const MdeqConfig config = config_of(size);
    Model<B> model(config, prefix, precision, o, machine, report);
    if (Options::wants(o.parts, "model")) model.all();
    if (Options::wants(o.parts, "convolutions"))
      for (const Convolution& v : convolutions(config, o.batch)) {
        convolution<B>(v, prefix, precision, o, report);
        deq::cuda::DevicePool::instance().trim();
      }
    if (Options::has(o.parts, "epochs")) model.epochs();
  }
}

/// run.sh compiles a program for each precision, all at the same time.
#ifdef DEQ_GPU_BENCH_ONLY
using FirstPrecision = deq::cuda::DEQ_GPU_BENCH_ONLY;
void measure_precisions(const Options& o, const Machine& machine, Report& report) {
  measure_precision<FirstPrecision>(o, machine, report);
}
#else
using FirstPrecision = deq::cuda::Strict;
void measure_precisions(const Options& o, const Machine& machine, Report& report) {
  measure_precision<deq::cuda::Strict>(o, machine, report);
  measure_precision<deq::cuda::Tf32>(o, machine, report);
  measure_precision<deq::cuda::Bf16>(o, machine, report);
}
#endif

int run(const Options& o) {
  if (!deq::cuda::available()) {
    std::fputs("gpu_bench: no CUDA device here\n", stderr);
    return 77;
  }
  if (!o.export_to.empty()) {
    std::filesystem::create_directories(o.export_to);
    for (const std::string size : {"tiny", "large"})
      if (Options::wants(o.sizes, size))
        Work<deq::Cuda<float, FirstPrecision>>(config_of(size), o.batch)
            .save(std::filesystem::path(o.export_to) / (size + ".safetensors"));
    return 0;
  }
  const Machine machine = examine();
  std::fprintf(stderr, "%s, compute capability %d.%d, copies %.0f GB/s, peaks %s\n",
               machine.name.c_str(), machine.major, machine.minor, 1e-9 * machine.copy_bandwidth,
               machine.peaks ? "published" : "unknown");
  Report report(machine, o.batch, o.json);
  if (Options::wants(o.parts, "passes")) {
    passes(o, report);
    deq::cuda::DevicePool::instance().trim();
  }
  measure_precisions(o, machine, report);
  if (o.json.empty()) std::fputs(report.json().c_str(), stdout);
  return report.failures() ? 1 : 0;
}

}  // namespace
}  // namespace gpu_bench

int main(int argc, char** argv) {
  try {
    return gpu_bench::run(gpu_bench::parse(argc, argv));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_bench: %s\n", error.what());
    return 1;
  }
}
