// SPDX-License-Identifier: MIT
// What happens to the sums of a convolution on their way to memory.
#pragma once

#include <functional>

#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/conv/strip_moments.cuh>
#include <deq/backend/cuda/conv/tile.cuh>

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
  bool plain = false;   ///< u is the sum

  /// Writes u of n neighbouring channels of pixel `pixel` of all samples from their sums, and says
  /// what was written; zeros for what is beyond the last channel.
  template <int n>
  __device__ Pack<X, n> write(const Pack<S, n>& sums, const ImageMap& map, int pixel,
                              int channel) const {
    Pack<S, n> value = sums;
    const Index at = static_cast<Index>(pixel) * map.out_channels + channel;
    if (packed) {
      if (channel >= map.out_channels) return {};
      if (!plain) apply(value, map, pixel, channel, at);
      const Pack<X, n> stored = as<X>(value);
      store_pack(u + at, stored);
      return stored;
    }
    // Other widths than multiples of eight: one after the other, so that the code stays small. The
    // numbers pass by, since an index would put them into memory.
#pragma unroll 1
    for (int i = 0; i < n; ++i) {
      Pack<S, 1> one{value.word[0]};
#pragma unroll
      for (int k = 0; k + 1 < n; ++k) value.word[k] = value.word[k + 1];
      value.word[n - 1] = 0;
      if (channel + i >= map.out_channels) continue;
      apply(one, map, pixel, channel + i, at + i);
      const X stored = X(one.word[0]);
      u[at + i] = stored;
      value.word[n - 1] = static_cast<S>(stored);
    }
    return as<X>(value);
  }

 private:
  template <int n>
  __device__ void apply(Pack<S, n>& value, const ImageMap& map, int pixel, int channel,
                        Index at) const {
    const auto combine = [&value](const Pack<S, n>& with, auto operation) {
#pragma unroll
      for (int i = 0; i < n; ++i) value.word[i] = operation(value.word[i], with.word[i]);
    };
    if (parts.bias) combine(load_pack<n>(parts.bias + channel), std::plus<S>{});
    if (parts.mask) {
      const Index sample = pixel / map.out_pixels;
      combine(load_pack<n>(parts.mask + sample * map.out_channels + channel), std::multiplies<S>{});
    }
    if (parts.addend) combine(load_as<S, n>(parts.addend + at), std::plus<S>{});
  }
};

/// Writes a tile of u, and the moments of what it has written, in an order that is the same for
/// tiles of all shapes. A barrier has to follow before the next tile.
template <class T, class X, class Product>
__device__ void write_tile(const ImageMap& map, const Segments& segments, RowSet samples,
                           Index first_row, int first_channel,
                           const ConvEpilogue<typename T::S, X>& epilogue, const Product& product) {
  using S = typename T::S;
  using OfStrips = StripMoments<S, X, T::rows / strip_rows, T::columns>;
  __shared__ OfStrips of_strips;
  const int lane = lane_here();
  const auto there = [&](const Segments::Row& row) {
    return exists(map, row) && samples.contains(row.sample);
  };
  product.for_each_strip([&]<int n>(int row, int column, const S(&sums)[n][4]) {
    // Of 32 columns a thread has eight channels (channel_of_column); where a strip is not made of
    // such, of 16 columns half of them.
    constexpr int pack = n % 4 == 0 ? 8 : 4;
    int pixel[2];
    S count = 0;  // of its two rows, of which the first is there if the second is
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Segments::Row at = segments.row(first_row + row + 8 * r + lane / 4);
      pixel[r] = -1;
      if (!there(at)) continue;
      pixel[r] = output_pixel(map, at);
      ++count;
    }
#pragma unroll
    for (int j = 0; j < n; j += pack / 2) {
      const int piece = column + 8 * j,
                c = piece / 32 * 32 + lane % 4 * 8 + (pack < 8 ? piece / 16 % 2 * pack : 0);
      Pack<X, pack> u[2] = {};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if (pixel[r] < 0) continue;
        Pack<S, pack> value;
#pragma unroll
        for (int i = 0; i < pack; ++i) value.word[i] = sums[j + i / 2][2 * r + i % 2];
        u[r] = epilogue.write(value, map, pixel[r], first_channel + c);
      }
      if (epilogue.moments) of_strips.put(row / strip_rows, c, u, count);
    }
  });
  if (!epilogue.moments) return;
  __syncthreads();
  const int moments_of_tile = T::columns * segments.in(T::rows);
  for (int i = static_cast<int>(threadIdx.x); i < moments_of_tile; i += threads) {
    const int piece = i / T::columns, c = i % T::columns, begin = piece * segments.rows;
    const Segments::Row row = segments.row(first_row + begin);
    if (!there(row) || first_channel + c >= map.out_channels) continue;
    const int rest = map.pixels() - row.pixel, count = rest < segments.rows ? rest : segments.rows;
    const Moment<S> moment = of_strips.of_rows(begin / strip_rows, count, c);
    S* const moments = epilogue.moments + (segments.in(first_row) + piece) *
                                              MomentParts<S>::part_size(map.out_channels);
    if (first_channel + c == 0) moments[0] = static_cast<S>(count);
    moments[1 + first_channel + c] = moment.mean;
    moments[1 + map.out_channels + first_channel + c] = moment.squares;
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
