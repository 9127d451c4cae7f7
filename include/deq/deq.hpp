// SPDX-License-Identifier: MIT
// Everything that runs on the host: include this one, or the headers that are needed.
#pragma once

#include <deq/backend/cpu/kernels.hpp>
#include <deq/backward/certificate.hpp>
#include <deq/backward/exact.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/backward/unrolled.hpp>
#include <deq/io/cifar10.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/layer/equilibrium.hpp>
#include <deq/layer/equilibrium_node.hpp>
#include <deq/model/mdeq.hpp>
#include <deq/model/mdeq_classifier.hpp>
#include <deq/nn/adam.hpp>
#include <deq/nn/augment.hpp>
#include <deq/nn/dropout.hpp>
#include <deq/nn/read.hpp>
#include <deq/nn/schedule.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>
#include <deq/solver/gmres.hpp>
#include <deq/tape/ops.hpp>
#include <deq/version.hpp>
