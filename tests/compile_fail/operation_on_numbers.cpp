// expect: 'TensorLike
// SPDX-License-Identifier: MIT
// Operations take tensors and variables, not containers of numbers.
#include <vector>

#include <deq/deq.hpp>

int main() {
  const std::vector<double> numbers(6, 1);
#ifdef DEQ_FIXED
  const deq::Tensor<deq::Cpu<double>> x({2, 3}, numbers);
#else
  const std::vector<double> x = numbers;
#endif
  const auto y = deq::relu(x);
}
