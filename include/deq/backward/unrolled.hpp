// SPDX-License-Identifier: MIT
#pragma once

namespace deq {

/// No equilibrium: f is applied n times, weights tied, and the gradient goes back through all n
/// applications. How the original pre-trains. It replaces the solve as well as the adjoint, so the
/// layer treats it apart: see Equilibrium. Costs n evaluations forward, and n more with their VJPs
/// backward; keeps the intermediate values of n applications for one block of samples at a time.
struct Unrolled {
  static constexpr bool needs_inverse = false;
  static constexpr bool unrolls = true;

  int n = 10;

  template <class B>
  struct Workspace {};
};

}  // namespace deq
