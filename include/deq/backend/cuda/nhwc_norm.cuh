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

namespace cuda {
/// What a normalisation does to one channel of one sample, up to the residual.
template <class S>
struct NormOfChannel {
  S mean, factor, bias;

  __device__ NormOfChannel(const NhwcNorm<S>& norm, Index sample, Index channel) {
    const Index s = norm.geometry.statistic(sample, channel);
    mean = norm.mean[s];
    factor = norm.factor(s, channel);
    bias = norm.shift(channel);
  }
  __device__ S operator()(S u) const { return (u - mean) * factor + bias; }
};

/// K sums over the pixels of each sample: add(piece, sums) adds the terms of a thread,
/// write(sample, channel, sums) says what becomes of them.
template <int K, class S, class Add, class Write>
void sum_over_pixels(const NormGeometry& g, Add add, Write write) {
  const PixelPieces pieces(g);
  const Index channels = pieces.channels, parts = pieces.parts;
  const Scratch<S> scratch(pieces.samples * parts * K * channels);
  S* const of_parts = scratch.data();
  for_each_piece(pieces, [=] __device__(const PixelPiece& piece) {
    S sums[K] = {};
    add(piece, sums);
    piece.add(sums);
    if (!piece.speaks()) return;
    S* const out = of_parts + (piece.sample * parts + piece.part) * K * channels + piece.channel;
    for (int k = 0; k < K; ++k) out[k * channels] = sums[k];
  });
  for_each_index(pieces.samples * channels, [=] __device__(Index i) {
    const S* part = of_parts + i / channels * parts * K * channels + i % channels;
    S sums[K] = {};
    for (Index p = 0; p < parts; ++p, part += K * channels)
      for (int k = 0; k < K; ++k) sums[k] += part[k * channels];
    write(i / channels, i % channels, sums);
  });
}
}  // namespace cuda

/// y = relu((u - mean) inverse weight + bias + residual), or the average of that over the pixels.
template <class S>
void nhwc_normalize(Cuda<S>, const NhwcNorm<S>& norm, const S* u, const S* residual, S* y) {
  if (norm.average) {
    cuda::sum_over_pixels<1, S>(
        norm.geometry,
        [=] __device__(const cuda::PixelPiece& piece, S(&sum)[1]) {
          if (!piece.has_channel()) return;
          const cuda::NormOfChannel<S> normalized(norm, piece.sample, piece.channel);
          piece.for_each([&](Index place, int) {
            const S value = normalized(u[place]);
            sum[0] += norm.relu ? cuda::rectified(value) : value;
          });
        },
        [=] __device__(Index n, Index c, const S(&sum)[1]) {
          y[n * norm.geometry.channels + c] = sum[0] * norm.share_of_pixel();
        });
    return;
  }
  cuda::for_each_piece(cuda::PixelPieces(norm.geometry),
                       [=] __device__(const cuda::PixelPiece& piece) {
                         if (!piece.has_channel()) return;
                         const cuda::NormOfChannel<S> normalized(norm, piece.sample, piece.channel);
                         S value[cuda::pixels_a_thread];
                         piece.for_each([&](Index place, int k) {
                           value[k] = normalized(u[place]);
                           if (residual) value[k] += residual[place];
                         });
                         piece.for_each([&](Index place, int k) {
                           y[place] = norm.relu ? cuda::rectified(value[k]) : value[k];
                         });
                       });
}

namespace cuda {
/// d, the cotangent of what the relu was applied to, if it was. Where that let pass what it was
/// given shows in its output y or, where that is null, in u. The cotangent of an average is (N, C).
template <class S>
__device__ S before_relu(const NhwcNorm<S>& norm, const PixelPiece& piece,
                         const NormOfChannel<S>& normalized, const S* u, const S* y,
                         const S* cotangent, Index place) {
  const S d =
      cotangent[norm.average ? piece.sample * norm.geometry.channels + piece.channel : place];
  return norm.relu ? before_relu(d, y ? y[place] : normalized(u[place])) : d;
}
}  // namespace cuda

/// Sums (N, C) over the pixels of each sample: of d, the cotangent before the relu, and of d (u -
/// mean) inverse. They are the cotangents of bias and weight before the sum over samples. y is null
/// where there was no residual. The cotangent of an average is (N, C).
template <class S>
void nhwc_normalize_vjp_sums(Cuda<S>, const NhwcNorm<S>& norm, const S* u, const S* y,
                             const S* cotangent, S* sums_d, S* sums_du) {
  cuda::sum_over_pixels<2, S>(
      norm.geometry,
      [=] __device__(const cuda::PixelPiece& piece, S(&sums)[2]) {
        if (!piece.has_channel()) return;
        const cuda::NormOfChannel<S> normalized(norm, piece.sample, piece.channel);
        piece.for_each([&](Index place, int) {
          const S d = cuda::before_relu(norm, piece, normalized, u, y, cotangent, place);
          sums[0] += d;
          sums[1] += d * (u[place] - normalized.mean);
        });
      },
      [=] __device__(Index n, Index c, const S(&sums)[2]) {
        const NormGeometry& g = norm.geometry;
        const S share = norm.share_of_pixel();
        sums_d[n * g.channels + c] = share * sums[0];
        sums_du[n * g.channels + c] = share * norm.inverse[g.statistic(n, c)] * sums[1];
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
        const Index c = piece.channel;
        const cuda::NormOfChannel<S> normalized(norm, piece.sample, c);
        const S inverse = norm.inverse[g.statistic(piece.sample, c)];
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
        const S share = norm.share_of_pixel();
        const S scale = norm.scale(c), of_mask = mask ? mask[piece.sample * g.channels + c] : S(1);
        S d[cuda::pixels_a_thread], du[cuda::pixels_a_thread];
        piece.for_each([&](Index place, int k) {
          d[k] = share * cuda::before_relu(norm, piece, normalized, u, y, cotangent, place);
          du[k] =
              inverse * (scale * d[k] - mean_e - (u[place] - normalized.mean) * inverse * mean_ev);
        });
        piece.for_each([&](Index place, int k) {
          cuda::put(of_residual, place, d[k]);
          cuda::put(of_u, place, du[k]);
          if (masked) masked[place] = du[k] * of_mask;
        });
      });
}

}  // namespace deq
