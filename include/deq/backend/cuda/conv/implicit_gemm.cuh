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
        row.sample < map.samples && row.pixel < map.pixels() && samples.contains(row.sample);
    place[r] = there ? (row.sample * map.out_pixels + map.place(row.pixel)) * map.out_channels : -1;
    sample_of[r] = row.sample;
  }
  __syncthreads();
  const NhwcConvParts<S>& parts = epilogue.parts;
  for (int i = static_cast<int>(threadIdx.x); i < T::rows * T::columns; i += threads) {
    const int r = i / T::columns, c = i % T::columns, channel = first_column + c;
    if (place[r] < 0 || channel >= map.out_channels) continue;
    S& u = sums[r * T::sum_line + c];
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
      sum += sums[(first + n) * T::sum_line + c];
    const S mean = sum / static_cast<S>(n);
    S squares = 0;
    for (int k = 0; k < n; ++k) {
      const S d = sums[(first + k) * T::sum_line + c] - mean;
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
                         const typename T::Word* packed, Index packed_depth,
                         ConvEpilogue<typename T::S> epilogue) {
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows;
  const int first_column = static_cast<int>(blockIdx.y) * T::columns;
  if (nobody(map, segments, samples, first_row, T::rows)) return;
  typename T::Word* const shared = dynamic_shared<typename T::Word>();
  Patches<T, width> a(map, segments, samples, x, first_row);
  Weights<T> b(packed, packed_depth / T::Arithmetic::numbers, first_column);
  T product;
  product.multiply(a, b, (map.depth() + T::stage - 1) / T::stage, shared);
  auto* const sums = reinterpret_cast<typename T::S*>(shared);
  product.spread(sums);
  write_tile<T>(map, segments, samples, first_row, first_column, epilogue, sums);
}

/// body(integral constants of rows, columns) for the tile of a plan.
template <class Body>
void with_tile(const TilePlan& plan, Body&& body) {
  constexpr std::integral_constant<int, 128> high;
  constexpr std::integral_constant<int, 64> low, wide;
  if (plan.columns == 32)
    body(high, std::integral_constant<int, 32>{});
  else if (plan.rows == 64)
    body(low, wide);
  else
    body(high, wide);
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

/// The outputs of one phase, from its packed weight.
template <class A, class S>
void convolve(const ImageMap& map, const S* x, const S* packed, const ConvEpilogue<S>& epilogue) {
  const Segments segments(map.pixels());
  const TilePlan plan(segments.rows_of(map.samples), map.out_channels, processors());
  with_tile(plan, [&](auto rows, auto columns) {
    using T = Tile<A, rows, columns>;
    with_width(map.channels, x, [&](auto width) {
      launch({.x = plan.row_tiles, .y = plan.column_tiles, .shared_bytes = T::shared_bytes},
             implicit_gemm_kernel<T, width>, map, segments, RowSet::of(map.samples), x,
             reinterpret_cast<const typename T::Word*>(packed), PackedWeight(map).depth, epilogue);
    });
  });
}
/// The convolution, or its transpose, of all of x with a packed weight.
template <class A, class S>
void convolve(const Conv2dGeometry& g, bool transposed, const S* x, const S* packed,
              const ConvEpilogue<S>& epilogue) {
  for (int phase = 0; phase < ImageMap::phases(g, transposed); ++phase) {
    const ImageMap map(g, transposed, phase);
    convolve<A>(map, x, packed, epilogue);
    packed += PackedWeight(map).words(A::numbers);
  }
}

/// Packs a weight (O, C, kh, kw) for the convolution, or for its transpose.
template <class A, class S>
void pack_weight(const Conv2dGeometry& g, bool transposed, const S* w, S* packed) {
  const Index in_channels = g.in_channels, kernel_width = g.kernel_width, taps = g.kernel_size();
  for (int phase = 0; phase < ImageMap::phases(g, transposed); ++phase) {
    const ImageMap map(g, transposed, phase);
    const PackedWeight weight(map);
    auto* const words = reinterpret_cast<typename A::Word*>(packed);
    for_each_index(weight.words(A::numbers), [=] __device__(Index i) {
      const Index line = weight.depth / A::numbers, n = i / line, first = i % line * A::numbers;
      S x[A::numbers];
      for (int d = 0; d < A::numbers; ++d) {
        const int k = static_cast<int>(first) + d;
        if (k >= map.depth() || n >= map.out_channels) {
          x[d] = 0;
          continue;
        }
        const int t = k / map.channels, c = k % map.channels;
        const int y = t / map.x.taps * map.y.tap_step + map.y.tap_first,
                  column = t % map.x.taps * map.x.tap_step + map.x.tap_first;
        x[d] = w[((transposed ? c : n) * in_channels + (transposed ? n : c)) * taps +
                 y * kernel_width + column];
      }
      words[i] = A::word(x);
    });
    packed += weight.words(A::numbers);
  }
}

}  // namespace deq::cuda
