// SPDX-License-Identifier: MIT
// In which numbers products are taken. Sums are float, or double for Strict in double.
#pragma once

namespace deq::cuda {

struct Strict {};  ///< the backend's Scalar
struct Tf32 {};    ///< 8 bits of exponent, 10 of mantissa
struct Bf16 {};    ///< 8 bits of exponent, 7 of mantissa

}  // namespace deq::cuda
