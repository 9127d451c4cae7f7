// SPDX-License-Identifier: MIT
// The moments of what a tile of a convolution writes, for the norm that comes next: of strips of 16
// rows by the warp that has them in registers, those of a segment from its strips.
#pragma once

#include <deq/backend/cuda/conv/arithmetic.cuh>
#include <deq/backend/cuda/moments.cuh>
#include <deq/backend/cuda/pointwise.cuh>

namespace deq::cuda {

/// Rows that a warp has the sums of at a time, and strips of a segment (plan.hpp) at most.
inline constexpr int strip_rows = 16, segment_strips = 4;

/// Of one channel: the mean, and the sum of (u - mean)^2.
template <class S>
struct Moment {
  S mean, squares;
};

/// In shared memory, of `columns` channels of every strip. In a segment the rows that are there
/// come first; what others have of u is 0.
template <class S, class X, int strips, int columns>
class StripMoments {
 public:
  /// By a whole warp: u, two rows eight apart of the channels that this thread has of them, from
  /// column `first` on, and how many of the two are there.
  template <int pack>
  __device__ void put(int strip, int first, const Pack<X, pack> (&u)[2], S count) {
    // The lanes of a column put theirs together, and divide the channels among themselves.
    const auto of_strip =
        halved<4>(halved<8>(halved<16>(Moments<S, pack>(u[0].word, u[1].word, count))));
    const int lane = lane_here(), quad = lane / 4 % 2;
    if (pack < 8 && quad != first / 4 % 2) return;  // another thread has the same
    of_[strip][first / 8 * 8 + quad * 4 + lane / 8 % 2 * 2 + lane / 16] = {of_strip.mean[0],
                                                                           of_strip.squares[0]};
  }
  /// Of `count` rows from the first of a strip on.
  __device__ Moment<S> of_rows(int strip, int count, int column) const {
    Moment<S> part[segment_strips];
    S rows[segment_strips], sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < segment_strips; ++k) {
      const int left = count - k * strip_rows;
      if (left <= 0) break;
      part[k] = of_[strip + k][column];
      rows[k] = static_cast<S>(left < strip_rows ? left : strip_rows);
      sum += rows[k] * part[k].mean;
    }
    const S mean = sum / static_cast<S>(count);
#pragma unroll
    for (int k = 0; k < segment_strips; ++k) {
      if (k * strip_rows >= count) break;
      const S distance = part[k].mean - mean;
      squares += part[k].squares + rows[k] * distance * distance;
    }
    return {mean, squares};
  }

 private:
  Moment<S> of_[strips][columns];
};

/// An 8 x 8 matrix of 16-bit numbers, transposed: this thread has two neighbours of row lane / 4.
__device__ inline unsigned transposed_square(unsigned pair) {
#ifdef __CUDACC__
  unsigned of_transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(of_transposed) : "r"(pair));
  return of_transposed;
#else
  return deq_emulation::movmatrix_trans(pair);
#endif
}

/// Of images stored as bfloat16 by the tensor cores, in 4 instructions for eight channels of a
/// strip where shuffles take a hundred. Channels times rows are multiplied with their transpose,
/// whose diagonal are the sums of squares, and with ones:
///
///     ( u )           ( u u^T )
///     ( 1 ) u^T   =   (  sum  ),        sum (u - mean)^2 = sum u^2 - mean sum u
///
/// Products are exact, and added in float: the difference is off by some 2^-23 of sum u^2, of which
/// rounding u to bfloat16 has changed it by 2^-18 already. Numbers whose squares are beyond float
/// have no variance.
template <int strips, int columns>
class StripMoments<float, Bfloat16, strips, columns> {
 public:
  template <int pack>
  __device__ void put(int strip, int first, const Pack<Bfloat16, pack> (&u)[2], float /*count*/) {
    constexpr unsigned ones = 0x3f803f80u;
    const int lane = lane_here(), odd = lane / 4 % 2;
#pragma unroll
    for (int j = 0; j < pack / 2; ++j) {
      const unsigned upper = transposed_square(u[0].pair[j]),
                     lower = transposed_square(u[1].pair[j]);
      float product[4] = {};
      Arithmetic<float, Bf16>::multiply(product, {upper, ones, lower, ones}, upper, lower);
      if (lane % 4 == lane / 8)  // has its own channel's number of the diagonal
        of_[strip][first + 2 * j + odd] = {odd ? product[3] : product[2],
                                           odd ? product[1] : product[0]};
    }
  }
  __device__ Moment<float> of_rows(int strip, int count, int column) const {
    float sum = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < segment_strips; ++k) {
      if (k * strip_rows >= count) break;
      const Sums part = of_[strip + k][column];
      sum += part.numbers;
      squares += part.squares;
    }
    const float mean = sum / static_cast<float>(count);
    return {mean, rectified(squares - mean * sum)};
  }

 private:
  struct alignas(8) Sums {
    float numbers, squares;
  };
  Sums of_[strips][columns];
};

}  // namespace deq::cuda
