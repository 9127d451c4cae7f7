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
  bool packed = false;  ///< channels come in eights that one access reaches

  /// Writes u of n neighbouring channels, of which number `at` of u is the first, from their sums;
  /// leaves what was written in `u`, zeros for what is beyond the last channel.
  template <int n>
  __device__ void write(Pack<S, n>& value, Index sample, Index at, int channel,
                        int channels) const {
    if (packed) {
      if (channel >= channels) {
        value = {};
        return;
      }
      const auto combine = [&value](const Pack<S, n>& with, auto operation) {
#pragma unroll
        for (int i = 0; i < n; ++i) value.word[i] = operation(value.word[i], with.word[i]);
      };
      if (parts.bias) combine(load_pack<n>(parts.bias + channel), std::plus<S>{});
      if (parts.mask)
        combine(load_pack<n>(parts.mask + sample * channels + channel), std::multiplies<S>{});
      if (parts.addend) combine(load_as<S, n>(parts.addend + at), std::plus<S>{});
      const Pack<X, n> stored = as<X>(value);
      store_pack(u + at, stored);
      value = as<S>(stored);
    } else {
#pragma unroll
      for (int i = 0; i < n; ++i) {
        S v = value.word[i];
        value.word[i] = 0;
        if (channel + i >= channels) continue;
        if (parts.bias) v += parts.bias[channel + i];
        if (parts.mask) v *= parts.mask[sample * channels + channel + i];
        if (parts.addend) v += static_cast<S>(parts.addend[at + i]);
        const X stored = X(v);
        u[at + i] = stored;
        value.word[i] = static_cast<S>(stored);
      }
    }
  }
};

/// Writes a tile of u, and the moments of what it has written: those of strips of 16 rows are put
/// together by the lanes of a warp, those of a segment from its strips. The order is the same for
/// tiles of all shapes. A barrier has to follow before the next tile.
template <class T, class X, class Product>
__device__ void write_tile(const ImageMap& map, const Segments& segments, RowSet samples,
                           Index first_row, int first_channel,
                           const ConvEpilogue<typename T::S, X>& epilogue, const Product& product) {
  using S = typename T::S;
  constexpr int strip_rows = 16, strips = T::rows / strip_rows;
  __shared__ S mean[strips][T::columns], squares[strips][T::columns];
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  const auto there = [&](const Segments::Row& row) {
    return row.sample < map.samples && row.pixel < map.pixels() && samples.contains(row.sample);
  };
  product.for_each_strip([&]<int n>(int row, int column, const S(&sums)[n][4]) {
    // Of 32 columns a thread has eight channels (channel_of_column), or half of them.
    constexpr int pack = 2 * n < 8 ? 2 * n : 8;
    const int half = pack < 8 ? column / 16 % 2 : 0;
    Index place[2], sample[2];
    S count = 0;  // of its two rows, of which the first is there if the second is
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Segments::Row at = segments.row(first_row + row + 8 * r + lane / 4);
      sample[r] = at.sample;
      place[r] = -1;
      if (!there(at)) continue;
      place[r] = (at.sample * map.out_pixels + map.place(at.pixel)) * map.out_channels;
      ++count;
    }
#pragma unroll
    for (int j = 0; j < n; j += pack / 2) {
      const int group = column / 32 * 32 + 8 * j,
                channel = first_channel + group + lane % 4 * 8 + half * pack;
      Pack<S, pack> u[2] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (place[r] < 0) continue;
#pragma unroll
        for (int i = 0; i < pack; ++i) u[r].word[i] = sums[j + i / 2][2 * r + i % 2];
        epilogue.write(u[r], sample[r], place[r] + channel, channel, map.out_channels);
      }
      if (!epilogue.moments) continue;
      const auto of_strip =
          halved<4>(halved<8>(halved<16>(Moments<S, pack>(u[0].word, u[1].word, count))));
      const int quad = lane / 4 % 2;
      if (pack < 8 && quad != half) continue;  // another thread has the same
      const int c = group + lane % 4 * 8 + quad * 4 + lane / 8 % 2 * 2 + lane / 16;
      mean[row / strip_rows][c] = of_strip.mean[0];
      squares[row / strip_rows][c] = of_strip.squares[0];
    }
  });
  if (!epilogue.moments) return;
  __syncthreads();
  const int pieces = T::rows / segments.rows;
  for (int i = static_cast<int>(threadIdx.x); i < pieces * T::columns; i += threads) {
    const int begin = i / T::columns * segments.rows, c = i % T::columns;
    const Segments::Row row = segments.row(first_row + begin);
    if (!there(row) || first_channel + c >= map.out_channels) continue;
    // The rows of a segment that are there come first.
    const int rest = map.pixels() - row.pixel, count = rest < segments.rows ? rest : segments.rows;
    S n = 0, total_mean = 0, total_squares = 0;
    for (int r = 0; r < count; r += strip_rows) {
      const S k = static_cast<S>(count - r < strip_rows ? count - r : strip_rows), total = n + k;
      const int strip = (begin + r) / strip_rows;
      const S distance = mean[strip][c] - total_mean, share = k / total;
      total_mean += distance * share;
      total_squares += squares[strip][c] + distance * distance * n * share;
      n = total;
    }
    S* const moments = epilogue.moments + (first_row + begin) / segments.rows *
                                              MomentParts<S>::part_size(map.out_channels);
    if (first_channel + c == 0) moments[0] = n;
    moments[1 + first_channel + c] = total_mean;
    moments[1 + map.out_channels + first_channel + c] = total_squares;
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
