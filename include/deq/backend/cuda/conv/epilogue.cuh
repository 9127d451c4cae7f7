// SPDX-License-Identifier: MIT
// What happens to the sums of a convolution on their way to memory.
#pragma once

#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/conv/tile.cuh>
#include <deq/backend/cuda/moments.cuh>

namespace deq::cuda {

/// What a convolution does with its sums, u = (sum + bias) mask + addend, where it puts u, and its
/// moments (null: nobody wants them), for which a segment is a part of MomentParts. Images are
/// stored as X.
template <class S, class X = S>
struct ConvEpilogue {
  NhwcConvParts<S, X> parts;
  X* u;
  S* moments = nullptr;
  bool quads = false;  ///< channels come in fours that one access reaches
};

/// Writes a tile of u, and the moments of what it has written. A thread has four columns of a few
/// rows, whose moments it takes in registers; those of a segment are put together from them.
template <class T, class X>
__device__ void write_tile(const ImageMap& map, const Segments& segments, RowSet samples,
                           Index first_row, int first_column,
                           const ConvEpilogue<typename T::S, X>& epilogue, typename T::S* sums) {
  using S = typename T::S;
  // The same for tiles of all heights, since it is an order of summation.
  constexpr int quads = T::columns / 4, rows = T::columns / 8;
  __shared__ Index place[T::rows];  // of a row in u; -1 for an empty one
  __shared__ Index sample_of[T::rows];
  for (int r = static_cast<int>(threadIdx.x); r < T::rows; r += threads) {
    const Segments::Row row = segments.row(first_row + r);
    const bool there =
        row.sample < map.samples && row.pixel < map.pixels() && samples.contains(row.sample);
    place[r] = there ? (row.sample * map.out_pixels + map.place(row.pixel)) * map.out_channels : -1;
    sample_of[r] = row.sample;
  }
  __syncthreads();
  const NhwcConvParts<S, X>& parts = epilogue.parts;
  const int first = static_cast<int>(threadIdx.x) / quads * rows;
  const int column = static_cast<int>(threadIdx.x) % quads * 4, channel = first_column + column;
  const int width = map.out_channels - channel < 4 ? map.out_channels - channel : 4;
  if (first < T::rows && width > 0) {
    S bias[4] = {}, pivot[4] = {}, sum[4] = {}, squares[4] = {};
    int n = 0;
    if (parts.bias)
      for (int i = 0; i < width; ++i) bias[i] = parts.bias[channel + i];
#pragma unroll
    for (int r = first; r < first + rows; ++r) {
      if (place[r] < 0) continue;
      Quad<S> u = load_pack<4>(sums + r * T::sum_line + column);
      const Index at = place[r] + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i) u.word[i] += bias[i];
      if (parts.mask) {
        const S* const mask = parts.mask + sample_of[r] * map.out_channels + channel;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (i < width) u.word[i] *= mask[i];
      }
      if (epilogue.quads) {
        if (parts.addend) {
          const Quad<S> addend = load_as<S, 4>(parts.addend + at);
#pragma unroll
          for (int i = 0; i < 4; ++i) u.word[i] += addend.word[i];
        }
        const Quad<X> stored = as<X>(u);
        store_pack(epilogue.u + at, stored);
        u = as<S>(stored);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i >= width) continue;
          if (parts.addend) u.word[i] += static_cast<S>(parts.addend[at + i]);
          const X stored = X(u.word[i]);
          epilogue.u[at + i] = stored;
          u.word[i] = static_cast<S>(stored);
        }
      }
      // About the first value, so that a large mean costs no accuracy.
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (n == 0) pivot[i] = u.word[i];
        const S d = u.word[i] - pivot[i];
        sum[i] += d;
        squares[i] += d * d;
      }
      ++n;
    }
    if (epilogue.moments && n > 0) {
      Quad<S> mean, m2;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const S offset = sum[i] / static_cast<S>(n);
        mean.word[i] = pivot[i] + offset;
        m2.word[i] = squares[i] - offset * sum[i];
      }
      // Nobody else has read these rows.
      store_pack(sums + first * T::sum_line + column, mean);
      store_pack(sums + (first + 1) * T::sum_line + column, m2);
    }
  }
  if (!epilogue.moments) return;
  __syncthreads();
  const int pieces = T::rows / segments.rows;
  for (int i = static_cast<int>(threadIdx.x); i < pieces * T::columns; i += threads) {
    const int begin = i / T::columns * segments.rows, c = i % T::columns;
    if (place[begin] < 0 || first_column + c >= map.out_channels) continue;
    // The rows of a segment that are there come first.
    const int rest = map.pixels() - segments.row(first_row + begin).pixel,
              count = rest < segments.rows ? rest : segments.rows;
    S n = 0, mean = 0, squares = 0;
    for (int r = 0; r < count; r += rows) {
      const S k = static_cast<S>(count - r < rows ? count - r : rows), total = n + k;
      const S* const of_rows = sums + (begin + r) * T::sum_line + c;
      const S distance = of_rows[0] - mean, share = k / total;
      mean += distance * share;
      squares += of_rows[T::sum_line] + distance * distance * n * share;
      n = total;
    }
    S* const moments = epilogue.moments + (first_row + begin) / segments.rows *
                                              MomentParts<S>::part_size(map.out_channels);
    if (first_column + c == 0) moments[0] = n;
    moments[1 + first_column + c] = mean;
    moments[1 + map.out_channels + first_column + c] = squares;
  }
}

/// True if no sample of a tile has to be computed.
__device__ inline bool nobody(const ImageMap& map, const Segments& segments, RowSet samples,
                              Index first_row, Index rows) {
  if (!samples.id) return false;
  const Index last = segments.row(first_row + rows - 1).sample;
  for (Index s = segments.row(first_row).sample; s <= last && s < map.samples; ++s)
    if (samples.contains(s)) return false;
  return true;
}

}  // namespace deq::cuda
