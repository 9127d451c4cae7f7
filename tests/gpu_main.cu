// SPDX-License-Identifier: MIT
// Runs the tests of a program on the GPU; without one they are skipped.
#define DOCTEST_CONFIG_IMPLEMENT
#include <cstdio>

#include <doctest/doctest.h>

#include <deq/backend/cuda/runtime.cuh>

int main(int argc, char** argv) {
  if (!deq::cuda::available()) {
    std::puts("skipped: there is no GPU");
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
