// SPDX-License-Identifier: MIT
// The part of the CUDA runtime and of its device language that the CUDA backend uses, for machines
// without a GPU: with this folder first in the include path, a host compiler builds the very same
// sources as plain C++20 and runs their kernels on the CPU.
//
// - Blocks run one after the other, the threads of a block as fibers of the calling OS thread, in
//   an order that a test sets (order.hpp). A kernel whose results depend on the order has a race.
// - Fresh device memory and dynamic shared memory are NaN; device memory is out of reach for host
//   code; launches, copies and captures that CUDA would refuse are refused (memory.hpp,
//   launch.hpp).
// - Threads that wait for each other forever are reported, and end the program (executor.hpp).
//
// Any OS thread may call the runtime; a mutex makes them take turns, kernels included. Kernels are
// launched with cudaLaunchKernelEx; dynamic shared memory comes from deq_emulation::dynamic_shared,
// tensor cores and asynchronous copies from the functions of tensor_cores.hpp and async_copy.hpp.
#pragma once

#include "async_copy.hpp"
#include "device_functions.hpp"
#include "executor.hpp"
#include "graphs.hpp"
#include "keywords.hpp"
#include "launch.hpp"
#include "memory.hpp"
#include "order.hpp"
#include "streams.hpp"
#include "tensor_cores.hpp"
#include "types.hpp"
