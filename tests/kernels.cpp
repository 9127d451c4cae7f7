// SPDX-License-Identifier: MIT
// The kernels of the CPU backend, for all tests.
#define DEQ_COMPILE_KERNELS
#include <deq/backend/cpu/kernels.hpp>
