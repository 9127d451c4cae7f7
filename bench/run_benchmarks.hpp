// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include <benchmark/benchmark.h>

#include <deq/core/parallel.hpp>

namespace bench {

#ifdef __clang__
inline constexpr const char* compiler = __VERSION__;
#else
inline constexpr const char* compiler = "g++ " __VERSION__;
#endif

/// The rest of a main. Its output names what only the program itself knows about its numbers.
inline int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("threads", std::to_string(deq::num_threads()));
  benchmark::AddCustomContext("compiler", compiler);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace bench
