// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <deq/core/types.hpp>

namespace gpu_bench {

using deq::Index;

constexpr int forward_iterations = 18;  ///< of a solve

struct Options {
  std::vector<std::string> precisions, sizes, parts;
  Index batch = 128;
  double seconds = 0.2;  ///< of a measurement, at least
  std::string json, export_to;

  static bool has(const std::vector<std::string>& list, const std::string& item) {
    return std::find(list.begin(), list.end(), item) != list.end();
  }
  /// Whether an item was asked for, by name or with all others.
  static bool wants(const std::vector<std::string>& list, const std::string& item) {
    return list.empty() || has(list, item);
  }
};

[[noreturn]] inline void usage() {
  std::fputs(
      "usage: gpu_bench [--precision strict|tf32|bf16]... [--size tiny|large]...\n"
      "                 [--part convolutions|passes|model|epochs]... [--batch N] [--seconds S]\n"
      "                 [--json FILE] [--export DIR]\n",
      stderr);
  std::exit(2);
}

inline Options parse(int argc, char** argv) {
  Options o;
  const auto one_of = [](std::vector<std::string>& list, const std::string& value,
                         const std::vector<std::string>& allowed) {
    if (!Options::has(allowed, value)) usage();
    list.push_back(value);
  };
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 == argc) usage();
    const std::string value = argv[i + 1];
    if (name == "--precision")
      one_of(o.precisions, value, {"strict", "tf32", "bf16"});
    else if (name == "--size")
      one_of(o.sizes, value, {"tiny", "large"});
    else if (name == "--part")
      one_of(o.parts, value, {"convolutions", "passes", "model", "epochs"});
    else if (name == "--batch")
      o.batch = std::atol(value.c_str());
    else if (name == "--seconds")
      o.seconds = std::atof(value.c_str());
    else if (name == "--json")
      o.json = value;
    else if (name == "--export")
      o.export_to = value;
    else
      usage();
  }
  if (o.batch < 1) usage();
  return o;
}

}  // namespace gpu_bench
