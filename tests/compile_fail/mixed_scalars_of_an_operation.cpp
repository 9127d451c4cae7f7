// expect: deq: an operation mixes tensors of two backends or scalars
// SPDX-License-Identifier: MIT
// One float among doubles, in the f of a layer.
#include <deq/deq.hpp>

int main() {
  using Double = deq::Tensor<deq::Cpu<double>>;
#ifdef DEQ_FIXED
  const Double half({1, 2}, 0.5);
#else
  const deq::Tensor<deq::Cpu<float>> half({1, 2}, 0.5F);
#endif
  const Double z({1, 2}, 1.0);
  return (z * half).size() == 2 ? 0 : 1;
}
