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

/// Samples cut into pieces of pixels. The threads of a block are `lanes` pixels by `width` packs of
/// n channels, so that neighbours have neighbouring numbers. Where a sample is cut depends on its
/// own extents alone, so its bits do not depend on the others.
template <int n>
struct PixelPieces {
  /// Pixels that one thread works on.
  static constexpr int pixels_a_thread = n == 1 ? 8 : 4;

  Index samples, pixels, channels;
  int packs, width, lanes;
  Index parts;  ///< of every sample

  explicit PixelPieces(const NormGeometry& g)
      : samples(g.samples),
        pixels(g.pixels),
        channels(g.channels),
        packs(static_cast<int>(channels / n)),
        width(packs < threads ? packs : threads),
        lanes(threads / (width > 0 ? width : 1)),
        parts(divide_up(pixels, piece())) {}

  /// Pixels of a piece; the last one may have fewer.
  DEQ_HOST_DEVICE Index piece() const { return static_cast<Index>(lanes) * pixels_a_thread; }
  Grid grid() const { return {.x = samples * parts, .y = divide_up<Index>(packs, threads)}; }
};

/// The piece of this block, as one of its threads sees it.
template <int n>
class PixelPiece {
 public:
  static constexpr int pixels_a_thread = PixelPieces<n>::pixels_a_thread;
  Index sample, part;
  int channel;  ///< the first of n

  __device__ explicit PixelPiece(const PixelPieces<n>& pieces)
      : sample(blockIdx.x / static_cast<unsigned>(pieces.parts)),
        part(blockIdx.x % static_cast<unsigned>(pieces.parts)),
        pieces_(pieces),
        first_(part * pieces.piece()),
        lane_(static_cast<int>(threadIdx.x) / pieces.width),
        column_(static_cast<int>(threadIdx.x) - lane_ * pieces.width) {
    channel = (static_cast<int>(blockIdx.y) * threads + column_) * n;
  }

  /// False for a thread without a channel, of which no number is asked for.
  __device__ bool has_channel() const {
    return lane_ < pieces_.lanes && channel < pieces_.channels;
  }
  /// True for the one thread that has the last word on its channels.
  __device__ bool speaks() const { return lane_ == 0 && has_channel(); }
  __device__ Index pixels() const {
    const Index rest = pieces_.pixels - first_;
    return rest < pieces_.piece() ? rest : pieces_.piece();
  }
  /// body(place, k) for the pixels of this thread, the numbers of number k of which are at `place`.
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
  /// The sums of K times n numbers over all threads of a pack, in each of them.
  template <int K, class S>
  __device__ void add(Pack<S, n> (&v)[K]) const {
    __shared__ Pack<S, n> of_thread[K][threads];
    for (int k = 0; k < K; ++k) of_thread[k][threadIdx.x] = v[k];
    // The upper half of the lanes to the lower one, until one is left.
    for (int left = pieces_.lanes; left > 1;) {
      const int half = (left + 1) / 2;
      __syncthreads();
      if (lane_ + half < left)
        for (int k = 0; k < K; ++k) {
          const Pack<S, n>& from = of_thread[k][threadIdx.x + half * pieces_.width];
          Pack<S, n>& to = of_thread[k][threadIdx.x];
          for (int i = 0; i < n; ++i) to.word[i] += from.word[i];
        }
      left = half;
    }
    __syncthreads();
    for (int k = 0; k < K; ++k) v[k] = of_thread[k][column_];
    __syncthreads();  // the next sum may begin
  }

 private:
  const PixelPieces<n>& pieces_;
  Index first_;
  int lane_, column_;
};

template <int blocks, int n, class Body>
__global__ void __launch_bounds__(threads, blocks)
    piece_kernel(PixelPieces<n> pieces, RowSet samples, Body body) {
  const PixelPiece<n> piece(pieces);
  if (samples.contains(piece.sample)) body(piece);
}
/// body(piece) by all threads of a block, for all pieces; a processor is to have room for so many
/// blocks.
template <int blocks = 1, int n, class Body>
void for_each_piece(const PixelPieces<n>& pieces, Body body) {
  launch(pieces.grid(), piece_kernel<blocks, n, Body>, pieces, RowSet::of(pieces.samples), body);
}

/// The moments of every channel of x in every piece.
template <int n, class S, class X>
void channel_moments(const PixelPieces<n>& pieces, const X* x, S* out) {
  const MomentParts<S> moments{out, pieces.channels, pieces.parts};
  for_each_piece(pieces, [=] __device__(const PixelPiece<n>& piece) {
    Pack<S, n> value[PixelPiece<n>::pixels_a_thread], sum[1] = {}, squares[1] = {};
    piece.for_each([&](Index place, int k) {
      value[k] = load_as<S, n>(x + place);
      for (int i = 0; i < n; ++i) sum[0].word[i] += value[k].word[i];
    });
    piece.add(sum);
    const S count = static_cast<S>(piece.pixels());
    Pack<S, n> mean;
    for (int i = 0; i < n; ++i) mean.word[i] = sum[0].word[i] / count;
    piece.for_each([&](Index, int k) {
      for (int i = 0; i < n; ++i) {
        const S d = value[k].word[i] - mean.word[i];
        squares[0].word[i] += d * d;
      }
    });
    piece.add(squares);
    if (!piece.speaks()) return;
    S* const part = moments.part(piece.sample, piece.part);
    if (piece.channel == 0) part[0] = count;
    for (int i = 0; i < n; ++i) {
      part[1 + piece.channel + i] = mean.word[i];
      part[1 + moments.channels + piece.channel + i] = squares[0].word[i];
    }
  });
}

/// K sums over the pixels of each sample: add(piece, sums) adds the terms of a thread,
/// write(sample, channel, sums) says what becomes of them.
template <int n, int K, class S, class Add, class Write>
void sum_over_pixels(const NormGeometry& g, Add add, Write write) {
  const PixelPieces<n> pieces(g);
  const Index channels = pieces.channels, parts = pieces.parts;
  const Scratch<S> scratch(pieces.samples * parts * K * channels);
  S* const of_parts = scratch.data();
  for_each_piece<2>(pieces, [=] __device__(const PixelPiece<n>& piece) {
    Pack<S, n> sums[K] = {};
    add(piece, sums);
    piece.add(sums);
    if (!piece.speaks()) return;
    S* const out = of_parts + (piece.sample * parts + piece.part) * K * channels + piece.channel;
    for (int k = 0; k < K; ++k)
      for (int i = 0; i < n; ++i) out[k * channels + i] = sums[k].word[i];
  });
  for_each_index(pieces.samples * channels, [=] __device__(Index i) {
    const Index sample = i / channels, channel = i - sample * channels;
    const S* part = of_parts + sample * parts * K * channels + channel;
    S sums[K] = {};
#pragma unroll 4
    for (Index p = 0; p < parts; ++p, part += K * channels)
      for (int k = 0; k < K; ++k) sums[k] += part[k * channels];
    write(sample, channel, sums);
  });
}

/// n numbers from one on, those of neighbouring channels; `without` if the list is left out.
template <int n, class S>
__device__ void load_channels(S (&to)[n], const S* from, S without) {
  if (from) {
    const Pack<S, n> all = load_pack<n>(from);
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = all.word[i];
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = without;
  }
}

/// Which statistics n channels of one sample have, from `channel` on.
template <int n>
class StatisticsOfChannels {
 public:
  __device__ StatisticsOfChannels(const NormGeometry& g, Index sample, int channel)
      : width_(static_cast<int>(g.channels_per_statistic)) {
    const int in_sample = channel / width_, groups = static_cast<int>(g.channels) / width_;
    first_ = (g.shared ? 0 : sample * groups) + in_sample;
    next_ = (in_sample + 1) * width_ - channel;
  }
  /// Those of a list with a number for each statistic. Mostly they are one or two.
  template <class S>
  __device__ void load(S (&to)[n], const S* from) const {
    from += first_;
    if (width_ == 1) {
      load_channels<n>(to, from, S(0));
    } else if (next_ + width_ >= n) {
      const S first = from[0], second = next_ < n ? from[1] : first;
#pragma unroll
      for (int i = 0; i < n; ++i) to[i] = i < next_ ? first : second;
    } else {
      int next = next_;
#pragma unroll
      for (int i = 0; i < n; ++i) {
        if (i == next) {
          ++from;
          next += width_;
        }
        to[i] = *from;
      }
    }
  }

 private:
  int width_;    ///< channels of a statistic
  Index first_;  ///< the one of the first channel
  int next_;     ///< the first channel that has the next one
};

/// What a normalisation does to n channels of one sample, up to the residual.
template <class S, int n>
struct NormOfChannels {
  S mean[n], factor[n], shift[n], inverse[n], scale[n];

  __device__ NormOfChannels(const NhwcNorm<S>& norm, Index sample, int channel)
      : NormOfChannels(norm, StatisticsOfChannels<n>(norm.geometry, sample, channel), channel) {}
  __device__ NormOfChannels(const NhwcNorm<S>& norm, const StatisticsOfChannels<n>& statistics,
                            int channel) {
    statistics.load(mean, norm.mean);
    statistics.load(inverse, norm.inverse);
    load_channels<n>(scale, norm.weight ? norm.weight + channel : nullptr, S(1));
    load_channels<n>(shift, norm.bias ? norm.bias + channel : nullptr, S(0));
#pragma unroll
    for (int i = 0; i < n; ++i) factor[i] = inverse[i] * scale[i];
  }
  __device__ S operator()(S u, int i) const { return (u - mean[i]) * factor[i] + shift[i]; }
};

/// call(integral constant): how many channels a thread takes at a time, of images and of what the
/// normalisation and a mask (N, C) have for each.
template <class S, class Call, class... X>
void with_channels(const NhwcNorm<S>& norm, const S* mask, Call&& call, const X*... images) {
  with_packs_of<best_pack<X...>>(norm.geometry.channels, std::forward<Call>(call), images...,
                                 norm.mean, norm.inverse, norm.weight, norm.bias, mask);
}

// All images that a pass needs are read before it writes any: a load need not wait for a store that
// may be to the same place.

template <int n, class S, class X>
void normalize(const NhwcNorm<S>& norm, const X* u, const X* residual, X* y) {
  if (norm.average)
    return sum_over_pixels<n, 1, S>(
        norm.geometry,
        [=] __device__(const PixelPiece<n>& piece, Pack<S, n>(&sum)[1]) {
          if (!piece.has_channel()) return;
          const NormOfChannels<S, n> normalized(norm, piece.sample, piece.channel);
          piece.for_each([&](Index place, int) {
            const Pack<S, n> us = load_as<S, n>(u + place);
            for (int i = 0; i < n; ++i) {
              const S value = normalized(us.word[i], i);
              sum[0].word[i] += norm.relu ? rectified(value) : value;
            }
          });
        },
        [=] __device__(Index s, Index c, const S(&sum)[1]) {
          y[s * norm.geometry.channels + c] = X(sum[0] * norm.share_of_pixel());
        });
  for_each_piece<4>(PixelPieces<n>(norm.geometry), [=] __device__(const PixelPiece<n>& piece) {
    if (!piece.has_channel()) return;
    constexpr int pixels = PixelPiece<n>::pixels_a_thread;
    Pack<X, n> us[pixels], more[pixels];
    piece.for_each([&](Index place, int k) {
      us[k] = load_pack<n>(u + place);
      if (residual) more[k] = load_pack<n>(residual + place);
    });
    const NormOfChannels<S, n> normalized(norm, piece.sample, piece.channel);
    piece.for_each([&](Index place, int k) {
      Pack<S, n> value = as<S>(us[k]);
      for (int i = 0; i < n; ++i) value.word[i] = normalized(value.word[i], i);
      if (residual) add_to(value, as<S>(more[k]));
      if (norm.relu)
        for (int i = 0; i < n; ++i) value.word[i] = rectified(value.word[i]);
      store_pack(y + place, as<X>(value));
    });
  });
}

/// What the VJP reads of a pixel, as it is stored. The cotangent of an average is (N, C).
template <int n, class X>
struct PixelOfVjp {
  Pack<X, n> u, y, cotangent;

  template <class S>
  __device__ void load(const NhwcNorm<S>& norm, const PixelPiece<n>& piece, const X* from_u,
                       const X* from_y, const X* from_cotangent, Index place) {
    u = load_pack<n>(from_u + place);
    if (norm.relu && from_y) y = load_pack<n>(from_y + place);
    cotangent = load_pack<n>(
        from_cotangent +
        (norm.average ? piece.sample * norm.geometry.channels + piece.channel : place));
  }
  /// d, the cotangent of what the relu was applied to, if it was. Where that let pass what it was
  /// given shows in its output y or, without that, in u.
  template <class S>
  __device__ Pack<S, n> before_relu(const NhwcNorm<S>& norm, bool has_y,
                                    const NormOfChannels<S, n>& normalized) const {
    Pack<S, n> d = as<S>(cotangent);
    if (!norm.relu) return d;
    const auto let_pass = [&d](const Pack<S, n>& values, auto value_of) {
      for (int i = 0; i < n; ++i)
        d.word[i] = cuda::before_relu(d.word[i], value_of(values.word[i], i));
    };
    if (has_y)
      let_pass(as<S>(y), [](S value, int) { return value; });
    else
      let_pass(as<S>(u), normalized);
    return d;
  }
};

template <int n, class S, class X>
void normalize_vjp_sums(const NhwcNorm<S>& norm, const X* u, const X* y, const X* cotangent,
                        S* sums_d, S* sums_du) {
  sum_over_pixels<n, 2, S>(
      norm.geometry,
      [=] __device__(const PixelPiece<n>& piece, Pack<S, n>(&sums)[2]) {
        if (!piece.has_channel()) return;
        PixelOfVjp<n, X> pixel[PixelPiece<n>::pixels_a_thread];
        piece.for_each(
            [&](Index place, int k) { pixel[k].load(norm, piece, u, y, cotangent, place); });
        const NormOfChannels<S, n> normalized(norm, piece.sample, piece.channel);
        piece.for_each([&](Index, int k) {
          const Pack<S, n> us = as<S>(pixel[k].u),
                           d = pixel[k].before_relu(norm, y != nullptr, normalized);
          for (int i = 0; i < n; ++i) {
            sums[0].word[i] += d.word[i];
            sums[1].word[i] += d.word[i] * (us.word[i] - normalized.mean[i]);
          }
        });
      },
      [=] __device__(Index s, Index c, const S(&sums)[2]) {
        const NormGeometry& g = norm.geometry;
        const S share = norm.share_of_pixel();
        sums_d[s * g.channels + c] = share * sums[0];
        sums_du[s * g.channels + c] = share * norm.inverse[g.statistic(s, c)] * sums[1];
      });
}

/// The means of e and e v over each group, one array after the other: weight times the sums of the
/// channels, over their number.
template <class S>
void means_of_groups(const NhwcNorm<S>& norm, const S* sums_d, const S* sums_du, S* means) {
  const NormGeometry& g = norm.geometry;
  const Index groups = g.groups(), statistics = g.statistics();
  for_each_team<warp_threads>(statistics, [=] __device__(Index s, Warp team) {
    const Index width = norm.geometry.channels_per_statistic, first = s % groups * width,
                sums = s / groups * norm.geometry.channels + first;
    S mean[2] = {};  // of e, and of e v
    team.for_each(width, [&](Index i) {
      mean[0] += norm.scale(first + i) * sums_d[sums + i];
      mean[1] += norm.scale(first + i) * sums_du[sums + i];
    });
    team.add(mean);
    if (team.rank > 0) return;
    const S count = static_cast<S>(norm.geometry.count());
    means[s] = mean[0] / count;
    means[statistics + s] = mean[1] / count;
  });
}

template <int n, class S, class X>
void normalize_vjp(const NhwcNorm<S>& norm, const X* u, const X* y, const X* cotangent,
                   const S* sums_d, const S* sums_du, const S* mask, NhwcSink<X> of_residual,
                   NhwcSink<X> of_u, X* masked) {
  const Index statistics = norm.geometry.statistics();
  const Scratch<S> scratch(sums_d ? 2 * statistics : 0);
  const S* const means = sums_d ? scratch.data() : nullptr;
  if (sums_d) means_of_groups(norm, sums_d, sums_du, scratch.data());
  for_each_piece<2>(PixelPieces<n>(norm.geometry), [=] __device__(const PixelPiece<n>& piece) {
    if (!piece.has_channel()) return;
    PixelOfVjp<n, X> pixel[PixelPiece<n>::pixels_a_thread];
    piece.for_each([&](Index place, int k) { pixel[k].load(norm, piece, u, y, cotangent, place); });
    const NormGeometry& g = norm.geometry;
    const StatisticsOfChannels<n> of(g, piece.sample, piece.channel);
    const NormOfChannels<S, n> normalized(norm, of, piece.channel);
    // du = factor d - constant - slope (u - mean)
    S constant[n] = {}, slope[n] = {};
    if (means) {
      of.load(constant, means);
      of.load(slope, means + statistics);
      for (int i = 0; i < n; ++i) {
        constant[i] *= normalized.inverse[i];
        slope[i] *= normalized.inverse[i] * normalized.inverse[i];
      }
    }
    const S* const masks = mask ? mask + piece.sample * g.channels + piece.channel : nullptr;
    const S share = norm.share_of_pixel();
    piece.for_each([&](Index place, int k) {
      const Pack<S, n> us = as<S>(pixel[k].u);
      Pack<S, n> d = pixel[k].before_relu(norm, y != nullptr, normalized), du;
      for (int i = 0; i < n; ++i) {
        d.word[i] *= share;
        du.word[i] = normalized.factor[i] * d.word[i] - constant[i] -
                     slope[i] * (us.word[i] - normalized.mean[i]);
      }
      put(of_residual, place, d);
      put(of_u, place, du);
      if (!masked) return;
      S of_mask[n];
      load_channels<n>(of_mask, masks, S(1));
      for (int i = 0; i < n; ++i) du.word[i] *= of_mask[i];
      store_pack(masked + place, as<X>(du));
    });
  });
}

}  // namespace cuda

// Images are stored as X.

/// The statistics of the groups of u.
template <class S, class X>
void nhwc_statistics(Cuda<S>, const NormGeometry& n, const X* u, const NormStatistics<S>& to) {
  cuda::with_packs(
      n.channels,
      [&](auto packs) {
        const cuda::PixelPieces<packs> pieces(n);
        const cuda::Scratch<S> moments(n.samples * pieces.parts *
                                       cuda::MomentParts<S>::part_size(n.channels));
        cuda::channel_moments(pieces, u, moments.data());
        cuda::group_statistics_of_moments(n, pieces.parts, moments.data(), to);
      },
      u);
}

/// y = relu((u - mean) inverse weight + bias + residual), or the average of that over the pixels.
template <class S, class X>
void nhwc_normalize(Cuda<S>, const NhwcNorm<S>& norm, const X* u, const X* residual, X* y) {
  cuda::with_channels<S>(
      norm, nullptr, [&](auto packs) { cuda::normalize<packs>(norm, u, residual, y); }, u, residual,
      y);
}

/// Sums (N, C) over the pixels of each sample: of d, the cotangent before the relu, and of d (u -
/// mean) inverse. They are the cotangents of bias and weight before the sum over samples. y is null
/// where there was no residual. The cotangent of an average is (N, C).
template <class S, class X>
void nhwc_normalize_vjp_sums(Cuda<S>, const NhwcNorm<S>& norm, const X* u, const X* y,
                             const X* cotangent, S* sums_d, S* sums_du) {
  cuda::with_channels<S>(
      norm, nullptr,
      [&](auto packs) { cuda::normalize_vjp_sums<packs>(norm, u, y, cotangent, sums_d, sums_du); },
      u, y, cotangent);
}

/// du = inverse (e - mean(e) - v mean(e v)), e = weight d, v = (u - mean) inverse, the means over
/// each group, by the sums of normalize_vjp_sums, over all samples where those share statistics;
/// null if the statistics are constants, whose terms then are 0. `of_residual` gets d, then `of_u`,
/// which may be the same memory, du, and `masked` (not accumulated) du times the mask (N, C) that u
/// was multiplied with.
template <class S, class X>
void nhwc_normalize_vjp(Cuda<S>, const NhwcNorm<S>& norm, const X* u, const X* y,
                        const X* cotangent, const S* sums_d, const S* sums_du, const S* mask,
                        NhwcSink<X> of_residual, NhwcSink<X> of_u, X* masked) {
  cuda::with_channels(
      norm, mask,
      [&](auto packs) {
        cuda::normalize_vjp<packs>(norm, u, y, cotangent, sums_d, sums_du, mask, of_residual, of_u,
                                   masked);
      },
      u, y, cotangent, of_residual.data, of_u.data, masked);
}

}  // namespace deq
