// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <deq/tape/tensor.hpp>

namespace deq {

/// A tensor that training changes, under its PyTorch state_dict name, with its gradient.
template <BackendMemory B>
struct Parameter {
  std::string name;
  Tensor<B> value;
  Tensor<B> grad;  ///< dl/dvalue of the last backward pass; the same shape

  Parameter(std::string parameter_name, const Shape& shape)
      : name(std::move(parameter_name)), value(shape, 0), grad(shape, 0) {}
};

/// Parameters in the order of the PyTorch module, so that optimizer states and files line up.
template <BackendMemory B>
using Parameters = std::vector<Parameter<B>>;

/// Number of trainable values.
template <BackendMemory B>
Index count_values(const Parameters<B>& parameters) {
  Index n = 0;
  for (const Parameter<B>& p : parameters) n += p.value.size();
  return n;
}

}  // namespace deq
