// SPDX-License-Identifier: MIT
// A convolution of channels-last images, or its transpose: one template over precision and tile.
// Floor: 2 samples pixels out_channels depth operations, and every image once through memory.
#pragma once

#include <deq/backend/cuda/conv/operands.cuh>
#include <deq/backend/cuda/moments.cuh>

namespace deq::cuda {

/// What a convolution does with its sums, u = (sum + bias) mask + addend, where it puts u, and its
/// moments (null: nobody wants them), for which a segment is a part of MomentParts.
template <class S>
struct ConvEpilogue {
  NhwcConvParts<S> parts;
  S* u;
  S* moments = nullptr;
};

/// Writes a tile of u, row by row, and its moments.
template <class T>
__device__ void write_tile(const ImageMap& map, const Segments& segments, RowSet samples,
                           Index first_row, int first_column,
                           const ConvEpilogue<typename T::S>& epilogue, typename T::S* sums) {
  using S = typename T::S;
  __shared__ Index place[T::rows];  // of a row in u; -1 for an empty one
  __shared__ Index sample_of[T::rows];
  for (int r = static_cast<int>(threadIdx.x); r < T::rows; r += threads) {
    const Segments::Row row = segments.row(first_row + r);
    const bool there =
        row.sample < map.samples && row.pixel < map.out_pixels() && samples.contains(row.sample);
    place[r] = there ? (row.sample * map.out_pixels() + row.pixel) * map.out_channels : -1;
    sample_of[r] = row.sample;
  }
  __syncthreads();
  const NhwcConvParts<S>& parts = epilogue.parts;
  for (int i = static_cast<int>(threadIdx.x); i < T::rows * T::columns; i += threads) {
    const int r = i / T::columns, c = i % T::columns, channel = first_column + c;
    if (place[r] < 0 || channel >= map.out_channels) continue;
    S& u = sums[r * T::c_line + c];
    if (parts.bias) u += parts.bias[channel];
    if (parts.mask) u *= parts.mask[sample_of[r] * map.out_channels + channel];
    if (parts.addend) u += parts.addend[place[r] + channel];
    epilogue.u[place[r] + channel] = u;
  }
  if (!epilogue.moments) return;
  __syncthreads();
  const int pieces = T::rows / segments.rows;
  for (int i = static_cast<int>(threadIdx.x); i < pieces * T::columns; i += threads) {
    const int first = i / T::columns * segments.rows, c = i % T::columns,
              channel = first_column + c;
    if (place[first] < 0 || channel >= map.out_channels) continue;
    int n = 0;
    S sum = 0;
    for (; n < segments.rows && place[first + n] >= 0; ++n)
      sum += sums[(first + n) * T::c_line + c];
    const S mean = sum / static_cast<S>(n);
    S squares = 0;
    for (int k = 0; k < n; ++k) {
      const S d = sums[(first + k) * T::c_line + c] - mean;
      squares += d * d;
    }
    S* const moments = epilogue.moments + (first_row + first) / segments.rows *
                                              MomentParts<S>::part_size(map.out_channels);
    if (channel == 0) moments[0] = static_cast<S>(n);
    moments[1 + channel] = mean;
    moments[1 + map.out_channels + channel] = squares;
  }
}

/// True if no sample of a tile has to be computed.
__device__ inline bool nobody(const ImageMap& map, const Segments& segments, RowSet samples,
                              Index first_row, Index rows) {
  const Index last = segments.row(first_row + rows - 1).sample;
  for (Index s = segments.row(first_row).sample; s <= last && s < map.samples; ++s)
    if (samples.contains(s)) return false;
  return true;
}

template <class T, int width>
__global__ void __launch_bounds__(threads)
    implicit_gemm_kernel(ImageMap map, Segments segments, RowSet samples, const typename T::S* x,
                         const typename T::Word* packed, Index packed_columns,
                         ConvEpilogue<typename T::S> epilogue) {
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows;
  const int first_column = static_cast<int>(blockIdx.y) * T::columns;
  if (nobody(map, segments, samples, first_row, T::rows)) return;
  typename T::Word* const shared = dynamic_shared<typename T::Word>();
  Patches<T, width> a(map, segments, samples, x, first_row);
  Weights<T> b(packed, packed_columns, first_column);
  T product;
  product.multiply(a, b, (map.depth() + T::stage - 1) / T::stage, shared);
  auto* const sums = reinterpret_cast<typename T::S*>(shared);
  product.spread(sums);
  write_tile<T>(map, segments, samples, first_row, first_column, epilogue, sums);
}

/// body(integral constants of rows, columns) for the tile of a plan.
template <class Body>
void with_tile(const TilePlan& plan, Body&& body) {
  const auto with_columns = [&](auto rows) {
    if (plan.columns == 32)
      body(rows, std::integral_constant<int, 32>{});
    else
      body(rows, std::integral_constant<int, 64>{});
  };
  if (plan.rows == 64)
    with_columns(std::integral_constant<int, 64>{});
  else
    with_columns(std::integral_constant<int, 128>{});
}

/// body(integral constant 4) if channels come in fours that lie where one access reaches them, else
/// body(integral constant 1).
template <class Body>
void with_width(Index channels, const void* data, Body&& body) {
  if (channels % 4 == 0 && reinterpret_cast<std::uintptr_t>(data) % 32 == 0)
    body(std::integral_constant<int, 4>{});
  else
    body(std::integral_constant<int, 1>{});
}

/// y = map(x) with a packed weight.
template <class A, class S>
void convolve(const ImageMap& map, const S* x, const S* packed, const ConvEpilogue<S>& epilogue) {
  const Segments segments(map.out_pixels());
  const TilePlan plan(segments.rows_of(map.samples), map.out_channels, processors());
  const PackedWeight weight(map.depth(), map.out_channels);
  with_tile(plan, [&](auto rows, auto columns) {
    using T = Tile<A, rows, columns>;
    with_width(map.channels, x, [&](auto width) {
      launch({.x = plan.row_tiles, .y = plan.column_tiles, .shared_bytes = T::shared_bytes},
             implicit_gemm_kernel<T, width>, map, segments, RowSet::of(map.samples), x,
             reinterpret_cast<const typename T::Word*>(packed), weight.columns, epilogue);
    });
  });
}

/// Packs op(B), number (k, n) of which is value(k, n), k < depth, n < columns.
template <class A, class S, class Value>
void pack(Index depth, Index columns, Value value, S* packed) {
  const PackedWeight weight(depth, columns);
  auto* const words = reinterpret_cast<typename A::Word*>(packed);
  for_each_index(weight.size() / A::numbers, [=] __device__(Index i) {
    const Index line = i / weight.columns, n = i % weight.columns;
    S x[A::numbers];
    for (int d = 0; d < A::numbers; ++d) {
      const Index k = line * A::numbers + d;
      x[d] = k < depth && n < columns ? value(k, n) : S(0);
    }
    words[i] = A::word(x);
  });
}
/// Packs a weight (O, C, kh, kw) for the convolution, or for its transpose.
template <class A, class S>
void pack_weight(const Conv2dGeometry& g, bool transposed, const S* w, S* packed) {
  const ImageMap map(g, transposed);
  const Index taps = g.kernel_size(), in_channels = g.in_channels;
  const int channels = map.channels;
  const auto value = [=] __device__(Index k, Index n) {
    const Index tap = k / channels, c = k % channels;
    return w[((transposed ? c : n) * in_channels + (transposed ? n : c)) * taps + tap];
  };
  pack<A>(map.depth(), map.out_channels, value, packed);
}

}  // namespace deq::cuda
