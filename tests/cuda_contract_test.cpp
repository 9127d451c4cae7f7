// SPDX-License-Identifier: MIT
#include <deq/backend/cuda/compiled_kernels.cuh>

#define DEQ_CONTRACT_BACKENDS deq::Cuda<float>, deq::Cuda<double>
#include "support/backend_contract.hpp"

TEST_CASE("Counters are 0, and nobody else's where launches may run side by side") {
  const auto zeros = [](const unsigned* counters, std::size_t n) {
    std::vector<unsigned> host(n, 1);
    Cuda<float>::download_bytes(host.data(), counters, n * sizeof(unsigned));
    return std::count(host.begin(), host.end(), 0u) == static_cast<std::ptrdiff_t>(n);
  };
  cuda::Counters counters;
  constexpr std::size_t n = 10000;  // two of them find room at first, three do not
  unsigned* const first = counters.next(n);
  unsigned* const second = counters.next(n);
  CHECK((second >= first + n || first >= second + n));
  unsigned* const third = counters.next(7 * n);
  for (unsigned* const place : {first, second})
    CHECK((third + 7 * n <= place || third >= place + n));
  CHECK(zeros(first, n));
  CHECK(zeros(second, n));
  CHECK(zeros(third, 7 * n));

  cuda::Counters of_stream;
  unsigned* const same = of_stream.first(0);
  CHECK(of_stream.first(n) == same);
  CHECK(zeros(same, n));
  CHECK(zeros(of_stream.first(3 * n), 3 * n));
  CHECK(zeros(same, n));  // stays, for what is on its way
}

namespace {
__global__ void shared_kernel(unsigned* first) { *cuda::dynamic_shared<unsigned>() = *first; }
}  // namespace

TEST_CASE("A kernel keeps the shared memory that it has been given") {
  cuda::Counters counters;
  unsigned* const place = counters.first(1);
  const std::size_t large = 90 << 10;
  for (const std::size_t bytes : {large, std::size_t{40} << 10})
    cuda::launch({.block = 1, .shared_bytes = bytes}, shared_kernel, place);
  cudaLaunchConfig_t config{};
  config.gridDim = config.blockDim = dim3(1);
  config.dynamicSmemBytes = large;
  config.stream = cuda::stream();
  CHECK(cudaLaunchKernelEx(&config, shared_kernel, place) == cudaSuccess);
  cuda::synchronize();
}

#ifdef DEQ_CUDA_EMULATION
TEST_CASE("No result depends on which block or thread is the last") {
  constexpr Index samples = 4, dim = 13000;  // several blocks a sample
  const std::vector<Index> everybody{0, 1, 2, 3};
  const auto expected = all_results<Cuda<float>>(everybody, dim, samples);
  for (const auto order : {deq_emulation::Order::backward, deq_emulation::Order::shuffled}) {
    deq_emulation::set_order(order);
    const auto results = all_results<Cuda<float>>(everybody, dim, samples);
    check_small_algebra<Cuda<float>>();
    deq_emulation::set_order(deq_emulation::Order::forward);
    CHECK(same_bits(results.data(), expected.data(), static_cast<Index>(expected.size())));
  }
}
#endif
