// SPDX-License-Identifier: MIT
#include <deq/backend/cuda/compiled_kernels.cuh>

#define DEQ_CONTRACT_BACKENDS deq::Cuda<float>, deq::Cuda<double>
#include "support/backend_contract.hpp"
