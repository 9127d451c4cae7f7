// SPDX-License-Identifier: MIT
#include <deq/backend/cuda/compiled_kernels.cuh>

#define DEQ_CONTRACT_BACKENDS deq::Cuda<float>, deq::Cuda<double>
#include "support/backend_contract.hpp"

#ifdef DEQ_CUDA_EMULATION
TEST_CASE("No result depends on which block or thread is the last") {
  constexpr Index samples = 4, dim = 13000;  // several blocks a sample
  const std::vector<Index> everybody{0, 1, 2, 3};
  const auto expected = all_results<Cuda<float>>(everybody, dim, samples);
  for (const auto order : {deq_emulation::Order::backward, deq_emulation::Order::shuffled}) {
    deq_emulation::set_order(order);
    const auto results = all_results<Cuda<float>>(everybody, dim, samples);
    deq_emulation::set_order(deq_emulation::Order::forward);
    CHECK(same_bits(results.data(), expected.data(), static_cast<Index>(expected.size())));
  }
}
#endif
