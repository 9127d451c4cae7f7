// SPDX-License-Identifier: MIT
// Normalisation of channels-last images, in as few passes as it takes: one for the moments (none
// where a convolution takes them as it writes), then one that also adds a residual and rectifies;
// backward, one for the sums and one for the cotangents.
#pragma once

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/moments.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/geometry.hpp>

namespace deq {

namespace cuda {

// --- Passes over the pixels --------------------------------------------------------------------

/// Pixels that one thread works on.
inline constexpr int pixels_a_thread = 8;

/// Samples cut into pieces of pixels. The threads of a block are `lanes` pixels by `width`
/// channels, so that neighbours have neighbouring numbers. Where a sample is cut depends on its own
/// extents alone, so its bits do not depend on the others.
struct PixelPieces {
  Index samples, pixels, channels;
  int width, lanes;
  Index parts;  ///< of every sample

  explicit PixelPieces(const NormGeometry& g)
      : samples(g.samples),
        pixels(g.pixels),
        channels(g.channels),
        width(channels < threads ? static_cast<int>(channels) : threads),
        lanes(threads / (width > 0 ? width : 1)),
        parts(divide_up(pixels, piece())) {}

  /// Pixels of a piece; the last one may have fewer.
  DEQ_HOST_DEVICE Index piece() const { return static_cast<Index>(lanes) * pixels_a_thread; }
  Grid grid() const { return {.x = samples * parts, .y = divide_up<Index>(channels, threads)}; }
};

/// The piece of this block, as one of its threads sees it.
class PixelPiece {
 public:
  Index sample, part, channel;

  __device__ explicit PixelPiece(const PixelPieces& pieces)
      : sample(blockIdx.x / static_cast<unsigned>(pieces.parts)),
        part(blockIdx.x % static_cast<unsigned>(pieces.parts)),
        channel(static_cast<Index>(blockIdx.y) * threads + column(pieces)),
        pieces_(pieces),
        first_(part * pieces.piece()),
        lane_(static_cast<int>(threadIdx.x) / pieces.width) {}

  /// False for a thread without a channel, of which no number is asked for.
  __device__ bool has_channel() const {
    return lane_ < pieces_.lanes && channel < pieces_.channels;
  }
  /// True for the one thread that has the last word on its channel.
  __device__ bool speaks() const { return lane_ == 0 && has_channel(); }
  __device__ Index pixels() const {
    const Index rest = pieces_.pixels - first_;
    return rest < pieces_.piece() ? rest : pieces_.piece();
  }
  /// body(place, k) for the pixels of this thread, number k of which is at `place`.
  template <class Body>
  __device__ void for_each(Body body) const {
    if (!has_channel()) return;
    const Index place = (sample * pieces_.pixels + first_) * pieces_.channels + channel;
#pragma unroll
    for (int k = 0; k < pixels_a_thread; ++k) {
      const Index pixel = lane_ + static_cast<Index>(k) * pieces_.lanes;
      if (first_ + pixel < pieces_.pixels) body(place + pixel * pieces_.channels, k);
    }
  }
  /// The sums of K numbers over all threads of a channel, in each of them.
  template <int K, class S>
  __device__ void add(S (&v)[K]) const {
    __shared__ S of_thread[K][threads];
    for (int k = 0; k < K; ++k) of_thread[k][threadIdx.x] = v[k];
    __syncthreads();
    for (int k = 0; k < K; ++k) {
      v[k] = 0;
      for (int t = column(pieces_); t < pieces_.lanes * pieces_.width; t += pieces_.width)
        v[k] += of_thread[k][t];
    }
    __syncthreads();  // the next sum may begin
  }

 private:
  __device__ static int column(const PixelPieces& pieces) {
    return static_cast<int>(threadIdx.x) % pieces.width;
  }

  const PixelPieces& pieces_;
  Index first_;
  int lane_;
};

template <class Body>
__global__ void __launch_bounds__(threads)
    piece_kernel(PixelPieces pieces, RowSet samples, Body body) {
  const PixelPiece piece(pieces);
  if (samples.contains(piece.sample)) body(piece);
}
/// body(piece) by all threads of a block, for all pieces.
template <class Body>
void for_each_piece(const PixelPieces& pieces, Body body) {
  launch(pieces.grid(), piece_kernel<Body>, pieces, RowSet::of(pieces.samples), body);
}

/// The moments of every channel of x in every piece.
template <class S>
void channel_moments(const PixelPieces& pieces, const S* x, S* out) {
  const MomentParts<S> moments{out, pieces.channels, pieces.parts};
  for_each_piece(pieces, [=] __device__(const PixelPiece& piece) {
    S value[pixels_a_thread], sum[1] = {}, squares[1] = {};
    piece.for_each([&](Index place, int k) {
      value[k] = x[place];
      sum[0] += value[k];
    });
    piece.add(sum);
    const S count = static_cast<S>(piece.pixels()), mean = sum[0] / count;
    piece.for_each([&](Index, int k) { squares[0] += (value[k] - mean) * (value[k] - mean); });
    piece.add(squares);
    if (!piece.speaks()) return;
    S* const part = moments.part(piece.sample, piece.part);
    if (piece.channel == 0) part[0] = count;
    part[1 + piece.channel] = mean;
    part[1 + moments.channels + piece.channel] = squares[0];
  });
}

}  // namespace cuda

/// The statistics of the groups of u.
template <class S>
void nhwc_statistics(Cuda<S>, const NormGeometry& n, const S* u, const NormStatistics<S>& to) {
  const cuda::PixelPieces pieces(n);
  const cuda::Scratch<S> moments(n.samples * pieces.parts *
                                 cuda::MomentParts<S>::part_size(n.channels));
  cuda::channel_moments(pieces, u, moments.data());
  cuda::group_statistics_of_moments(n, pieces.parts, moments.data(), to);
}

// All that a pass needs of its pixels is read before it writes any of them: a load need not wait
// for a store that may be to the same place.

/// y = relu((u - mean) inverse weight + bias + residual).
template <class S>
void nhwc_normalize(Cuda<S>, const NhwcNorm<S>& norm, const S* u, const S* residual, S* y) {
  cuda::for_each_piece(
      cuda::PixelPieces(norm.geometry), [=] __device__(const cuda::PixelPiece& piece) {
        if (!piece.has_channel()) return;
        const Index c = piece.channel, s = norm.geometry.statistic(piece.sample, c);
        const S mean = norm.mean[s], factor = norm.inverse[s] * norm.scale(c);
        const S bias = norm.bias ? norm.bias[c] : S(0);
        S value[cuda::pixels_a_thread];
        piece.for_each([&](Index place, int k) {
          value[k] = (u[place] - mean) * factor + bias;
          if (residual) value[k] += residual[place];
        });
        piece.for_each([&](Index place, int k) {
          y[place] = norm.relu ? cuda::rectified(value[k]) : value[k];
        });
      });
}

namespace cuda {
/// d, the cotangent of what the relu was applied to, if it was.
template <class S>
__device__ S before_relu(const NhwcNorm<S>& norm, const S* y, const S* cotangent, Index place) {
  return norm.relu ? before_relu(cotangent[place], y[place]) : cotangent[place];
}
}  // namespace cuda

/// Sums (N, C) over the pixels of each sample: of d, the cotangent before the relu, and of d (u -
/// mean) inverse. They are the cotangents of bias and weight before the sum over samples.
template <class S>
void nhwc_normalize_vjp_sums(Cuda<S>, const NhwcNorm<S>& norm, const S* u, const S* y,
                             const S* cotangent, S* sums_d, S* sums_du) {
  const cuda::PixelPieces pieces(norm.geometry);
  const Index channels = pieces.channels, parts = pieces.parts;
  const cuda::Scratch<S> scratch(pieces.samples * parts * 2 * channels);
  S* const of_parts = scratch.data();
  cuda::for_each_piece(pieces, [=] __device__(const cuda::PixelPiece& piece) {
    const Index c = piece.channel;
    // A thread without a channel takes part in the sums; of no statistic.
    const Index s = piece.has_channel() ? norm.geometry.statistic(piece.sample, c) : 0;
    const S mean = norm.mean[s], inverse = norm.inverse[s];
    S sum[2] = {};
    piece.for_each([&](Index place, int) {
      const S d = cuda::before_relu(norm, y, cotangent, place);
      sum[0] += d;
      sum[1] += d * (u[place] - mean);
    });
    piece.add(sum);
    if (!piece.speaks()) return;
    S* const out = of_parts + (piece.sample * parts + piece.part) * 2 * channels + c;
    out[0] = sum[0];
    out[channels] = sum[1] * inverse;
  });
  cuda::for_each_index(pieces.samples * channels, [=] __device__(Index i) {
    const S* part = of_parts + i / channels * parts * 2 * channels + i % channels;
    S d = 0, du = 0;
    for (Index p = 0; p < parts; ++p, part += 2 * channels) {
      d += part[0];
      du += part[channels];
    }
    sums_d[i] = d;
    sums_du[i] = du;
  });
}

/// du = inverse (e - mean(e) - v mean(e v)), e = weight d, v = (u - mean) inverse, the means over
/// each group, by the sums of normalize_vjp_sums, over all samples where those share statistics;
/// null if the statistics are constants, whose terms then are 0. `of_residual` gets d, then `of_u`,
/// which may be the same memory, du, and `masked` (not accumulated) du times the mask (N, C) that u
/// was multiplied with.
template <class S>
void nhwc_normalize_vjp(Cuda<S>, const NhwcNorm<S>& norm, const S* u, const S* y,
                        const S* cotangent, const S* sums_d, const S* sums_du, const S* mask,
                        NhwcSink<S> of_residual, NhwcSink<S> of_u, S* masked) {
  cuda::for_each_piece(
      cuda::PixelPieces(norm.geometry), [=] __device__(const cuda::PixelPiece& piece) {
        if (!piece.has_channel()) return;
        const NormGeometry& g = norm.geometry;
        const Index c = piece.channel, s = g.statistic(piece.sample, c);
        const S mean = norm.mean[s], inverse = norm.inverse[s];
        S mean_e = 0, mean_ev = 0;
        if (sums_d) {
          const Index sums = g.shared ? 0 : piece.sample * g.channels;
          const Index first = c - c % g.channels_per_statistic;
          for (Index i = first; i < first + g.channels_per_statistic; ++i) {
            mean_e += norm.scale(i) * sums_d[sums + i];
            mean_ev += norm.scale(i) * sums_du[sums + i];
          }
          mean_e /= static_cast<S>(g.count());
          mean_ev /= static_cast<S>(g.count());
        }
        const S scale = norm.scale(c), of_mask = mask ? mask[piece.sample * g.channels + c] : S(1);
        S d[cuda::pixels_a_thread], du[cuda::pixels_a_thread];
        piece.for_each([&](Index place, int k) {
          d[k] = cuda::before_relu(norm, y, cotangent, place);
          du[k] = inverse * (scale * d[k] - mean_e - (u[place] - mean) * inverse * mean_ev);
        });
        piece.for_each([&](Index place, int k) {
          cuda::put(of_residual, place, d[k]);
          cuda::put(of_u, place, du[k]);
          if (masked) masked[place] = du[k] * of_mask;
        });
      });
}

}  // namespace deq
