// expect: an operation needs saves_inputs, saves_output and vjp(Reverse)
// SPDX-License-Identifier: MIT
// An operation of one's own that computes but cannot be differentiated is recorded.
#include <deq/backend/cpu/elementwise.hpp>
#include <deq/tape/record.hpp>

using B = deq::Cpu<double>;

struct Copy {
  static constexpr bool saves_inputs = false, saves_output = false;
  deq::Tensor<B> forward(const deq::Tensor<B>& x) { return x.clone(); }
#ifdef DEQ_FIXED
  void vjp(const deq::Reverse<B>& r) const { r.grad[0].add(r.cotangent); }
#endif
};

int main() {
  deq::Tape<B> tape;
  const auto y = deq::record(Copy{}, tape.input(deq::Tensor<B>({2}, 1)));
}
