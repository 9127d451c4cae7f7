// SPDX-License-Identifier: MIT
// The CPU kernels of all operations in tape/ops.hpp. Operations find the kernels of their backend
// by argument-dependent lookup on its tag, when they are instantiated; neither includes the other.
#pragma once

#include <deq/backend/cpu/adam.hpp>
#include <deq/backend/cpu/broadcast.hpp>
#include <deq/backend/cpu/compiled_kernels.hpp>
#include <deq/backend/cpu/conv.hpp>
#include <deq/backend/cpu/elementwise.hpp>
#include <deq/backend/cpu/gemm.hpp>
#include <deq/backend/cpu/image.hpp>
#include <deq/backend/cpu/loss.hpp>
#include <deq/backend/cpu/nhwc.hpp>
#include <deq/backend/cpu/norm.hpp>
#include <deq/backend/cpu/packed_gemm.hpp>
#include <deq/backend/cpu/pool.hpp>
#include <deq/backend/cpu/shape.hpp>
