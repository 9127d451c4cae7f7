// SPDX-License-Identifier: MIT
// All operations of the tape. They run on any backend for which the kernels are there: for the CPU,
// include deq/backend/cpu/kernels.hpp as well.
#pragma once

#include <deq/tape/ops/broadcast.hpp>
#include <deq/tape/ops/conv.hpp>
#include <deq/tape/ops/elementwise.hpp>
#include <deq/tape/ops/linear.hpp>
#include <deq/tape/ops/loss.hpp>
#include <deq/tape/ops/nhwc.hpp>
#include <deq/tape/ops/nhwc_layout.hpp>
#include <deq/tape/ops/norm.hpp>
#include <deq/tape/ops/pool.hpp>
#include <deq/tape/ops/reduce.hpp>
#include <deq/tape/ops/shape.hpp>
