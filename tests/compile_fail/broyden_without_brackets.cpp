// expect: deq: write Broyden<> for Broyden
// SPDX-License-Identifier: MIT
// Broyden is a template, all of whose arguments have defaults.
#include <deq/deq.hpp>

int main() {
  const auto f = [](const auto& z) { return tanh(z); };
#ifdef DEQ_FIXED
  deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
#else
  deq::equilibrium<deq::Broyden, deq::Gdeq>(f);
#endif
}
