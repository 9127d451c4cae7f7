// SPDX-License-Identifier: MIT
// Normalisation of channels-last images, in as few passes as it takes: the moments while
// somebody writes the image, then one pass that also adds a residual and rectifies; backward, one
// pass for the sums and one for the cotangents.
#pragma once

#include <cmath>
#include <numeric>

#include <deq/backend/cpu/conv/fusion.hpp>
#include <deq/backend/cpu/conv/pieces.hpp>

namespace deq::detail {

/// Samples cut for a pass over their pixels.
inline Pieces pixel_pieces(const NormGeometry& g) {
  return {g.samples, g.pixels, std::max<Index>(64, 16384 / std::max<Index>(g.channels, 1))};
}

/// body(sample, part, first pixel, last pixel) for all pieces, shared by the team.
template <class Body>
void for_each_pixel_piece(const NormGeometry& g, Body&& body) {
  const Pieces pieces = pixel_pieces(g);
  parallel_for(
      pieces.count(),
      [&](Index i) {
        const auto piece = pieces[i];
        for (Index n = piece.first_sample; n < piece.last_sample; ++n)
          body(n, piece.part, piece.first, piece.last);
      },
      g.samples * g.pixels * g.channels < 16384);
}

/// Rows of one number a channel, for passes over pixels that lie one after the other: they go
/// through memory vector by vector, whatever the number of channels, and a row repeats itself until
/// it ends with a vector; unless that would take too long, then they go pixel by pixel.
template <class S>
class ChannelTable {
 public:
  ChannelTable(Index rows, Index channels)
      : channels_(channels),
        repeats_(channels > 0 && std::lcm(channels, simd_width<S>) <= longest),
        length_(repeats_ ? std::lcm(channels, simd_width<S>)
                         : simd_count<S>(channels) * simd_width<S>),
        numbers_(rows * length_) {}
  S* row(Index r) const { return numbers_.data() + r * length_; }
  /// Once the first `channels` numbers of every row are there.
  void repeat() const {
    if (!repeats_) return;
    for (S* p = numbers_.data(); p != numbers_.data() + numbers_.size(); p += length_)
      for (Index i = channels_; i < length_; i += channels_) std::copy_n(p, channels_, p + i);
  }
  /// body(place, place in a row, Whole, Half or First) for all vectors of `count` numbers, which
  /// are whole pixels.
  template <class Body>
  DEQ_INLINE void for_each_vector(Index count, Body&& body) const {
    Index first = 0;
    if (repeats_)
      for (; first + length_ <= count; first += length_)
        for (Index i = 0; i < length_; i += simd_width<S>) body(first + i, i, Whole{});
    const Index step = repeats_ ? length_ : channels_;
    for (; first < count; first += step)
      detail::for_each_vector<S>(std::min(step, count - first),
                                 [&](Index i, auto width)
                                     DEQ_INLINE { body(first + i, i, width); });
  }

 private:
  static constexpr Index longest = 2048;

  Index channels_;
  bool repeats_;
  Index length_;
  Array<Cpu<S>> numbers_;
};

/// The moments of every channel of x.
template <class S>
void channel_moments(const NormGeometry& g, const S* x, const MomentParts<S>& moments) {
  for_each_pixel_piece(g, [&](Index n, Index part, Index first, Index last) {
    const S* image = x + n * g.pixels * g.channels;
    for_each_vector<S>(g.channels, [&](Index c, auto width) DEQ_INLINE {
      Moments<S> sums;
      for_each_run<S>(first, last, [&](Index begin, Index end) DEQ_INLINE {
        MomentRun<S> run;
        for (Index p = begin; p < end; ++p) run.add(load(image + p * g.channels + c, width));
        sums.add(run);
      });
      sums.store_to(moments, n, part, c);
    });
  });
}

/// The statistics of every group, of every sample or of all of them, from the moments of
/// the channels' parts (Chan, Golub and LeVeque, 1979).
template <class S>
void group_statistics(const NormGeometry& g, const MomentParts<S>& moments,
                      const NormStatistics<S>& to) {
  const Index width = g.channels_per_statistic;
  const Index samples = g.shared ? 1 : g.samples;
  const Index parts = moments.parts * (g.shared ? g.samples : 1);
  for (Index n = 0; n < samples; ++n)
    for (Index group = 0; group < g.groups(); ++group) {
      const auto for_each_part = [&](auto&& body) {
        for (Index i = 0; i < parts; ++i) {
          const S* part = moments.part(n, i);
          if (part[0] == 0) continue;
          for (Index c = group * width; c < (group + 1) * width; ++c)
            body(part[0], part[1 + c], part[1 + g.channels + c]);
        }
      };
      S count = 0, sum = 0, squares = 0;
      for_each_part([&](S k, S m, S) {
        count += k;
        sum += k * m;
      });
      const S m = sum / count;
      for_each_part([&](S k, S part_mean, S part_squares) {
        squares += part_squares + k * (part_mean - m) * (part_mean - m);
      });
      to.put(n * g.groups() + group, m, squares / count);
    }
}

/// What is no longer positive; NaN stays NaN, so that it is seen.
template <class S>
DEQ_INLINE inline Simd<S> rectified(Simd<S> y) {
  const Simd<S> zero{};
  return y < zero ? zero : y;
}

/// What a normalisation does to the vector of channels from c on of sample n, up to the residual.
template <class S>
struct NormOfChannels {
  Simd<S> mean{}, factor{}, bias{};

  NormOfChannels(const NhwcNorm<S>& norm, Index n, Index c) {
    const NormGeometry& g = norm.geometry;
    for (Index l = 0; l < std::min(simd_width<S>, g.channels - c); ++l) {
      mean[l] = norm.mean[g.statistic(n, c + l)];
      factor[l] = norm.factor(g.statistic(n, c + l), c + l);
      bias[l] = norm.shift(c + l);
    }
  }
};

/// Sums over the pixels of each sample, to[k] (N, C). Of a vector of channels, terms(sample, first
/// channel, width) returns a function (pixel, sums) that adds its terms.
template <std::size_t K, class S, class Terms>
void sum_over_pixels(const NormGeometry& g, const std::array<S*, K>& to, Terms&& terms) {
  const Index parts = pixel_pieces(g).parts(), row = static_cast<Index>(K) * g.channels;
  const Array<Cpu<S>> of_parts(g.samples * parts * row);
  for_each_pixel_piece(g, [&](Index n, Index part, Index first, Index last) {
    S* out = of_parts.data() + (n * parts + part) * row;
    for_each_vector<S>(g.channels, [&](Index c, auto width) DEQ_INLINE {
      const auto add_terms = terms(n, c, width);
      std::array<Simd<S>, K> sums{};
      for_each_run<S>(first, last, [&](Index begin, Index end) DEQ_INLINE {
        std::array<Simd<S>, K> run{};
        for (Index p = begin; p < end; ++p) add_terms(p, run);
        for (std::size_t k = 0; k < K; ++k) sums[k] += run[k];
      });
      for (std::size_t k = 0; k < K; ++k)
        store(out + static_cast<Index>(k) * g.channels + c, sums[k], width);
    });
  });
  for (Index n = 0; n < g.samples; ++n)
    for (std::size_t k = 0; k < K; ++k)
      for (Index c = 0; c < g.channels; ++c) {
        const S* of_part =
            of_parts.data() + n * parts * row + static_cast<Index>(k) * g.channels + c;
        S sum = 0;
        for (Index part = 0; part < parts; ++part, of_part += row) sum += *of_part;
        to[k][n * g.channels + c] = sum;
      }
}

/// normalize() of an average.
template <class S>
void normalize_average(const NhwcNorm<S>& norm, const S* u, S* y) {
  const NormGeometry& g = norm.geometry;
  sum_over_pixels<1, S>(g, {y}, [&](Index n, Index c, auto width) {
    return [=, &g, of = NormOfChannels<S>(norm, n, c), relu = norm.relu](
               Index p, std::array<Simd<S>, 1>& sum) DEQ_INLINE {
      const Simd<S> from_mean = load(u + (n * g.pixels + p) * g.channels + c, width) - of.mean;
      const Simd<S> v = from_mean * of.factor + of.bias;
      sum[0] += relu ? rectified<S>(v) : v;
    };
  });
  for (Index i = 0; i < g.samples * g.channels; ++i) y[i] *= norm.share_of_pixel();
}

template <class S>
void normalize(const NhwcNorm<S>& norm, const S* u, const S* residual, S* y) {
  if (norm.average) return normalize_average(norm, u, y);
  const NormGeometry& g = norm.geometry;
  for_each_pixel_piece(g, [&](Index n, Index, Index first, Index last) {
    const ChannelTable<S> table(3, g.channels);
    for (Index c = 0; c < g.channels; ++c) {
      const Index s = g.statistic(n, c);
      table.row(0)[c] = norm.mean[s];
      table.row(1)[c] = norm.factor(s, c);
      table.row(2)[c] = norm.shift(c);
    }
    table.repeat();
    const Index begin = (n * g.pixels + first) * g.channels, size = (last - first) * g.channels;
    const S *const mean = table.row(0), *const factor = table.row(1), *const bias = table.row(2);
    const auto pass = [&](auto with_residual, auto with_relu) {
      table.for_each_vector(size, [&](Index i, Index c, auto width) DEQ_INLINE {
        const Index place = begin + i;
        Simd<S> v = load(u + place, width) - load(mean + c);
        v = v * load(factor + c) + load(bias + c);
        if constexpr (with_residual) v += load(residual + place, width);
        if constexpr (with_relu) v = rectified<S>(v);
        store(y + place, v, width);
      });
    };
    constexpr std::true_type yes;
    constexpr std::false_type no;
    if (residual)
      norm.relu ? pass(yes, yes) : pass(yes, no);
    else
      norm.relu ? pass(no, yes) : pass(no, no);
  });
}

/// d, the cotangent of what the relu was applied to, y its output or that itself.
template <class S>
DEQ_INLINE inline Simd<S> before_relu(const Simd<S>& cotangent, const Simd<S>& y) {
  const Simd<S> zero{};
  return y > zero ? cotangent : zero;
}

/// What tells where the relu let pass what it was given.
enum class Passed { everywhere, where_y, where_u };

/// pass(which of them, as a constant).
template <class S, class Pass>
void by_relu(const NhwcNorm<S>& norm, const S* y, Pass&& pass) {
  if (!norm.relu)
    pass(std::integral_constant<Passed, Passed::everywhere>{});
  else if (y)
    pass(std::integral_constant<Passed, Passed::where_y>{});
  else
    pass(std::integral_constant<Passed, Passed::where_u>{});
}

/// Sums (N, C) over the pixels of each sample: of d, the cotangent before the relu, and of d (u -
/// mean) inverse. They are the cotangents of bias and weight before the sum over samples. y is null
/// where there was no residual. The cotangent of an average is (N, C).
template <class S>
void normalize_vjp_sums(const NhwcNorm<S>& norm, const S* u, const S* y, const S* cotangent,
                        S* sums_d, S* sums_du) {
  const NormGeometry& g = norm.geometry;
  by_relu(norm, y, [&](auto passed) {
    sum_over_pixels<2, S>(g, {sums_d, sums_du}, [&](Index n, Index c, auto width) {
      return [=, &g, of = NormOfChannels<S>(norm, n, c), average = norm.average](
                 Index p, std::array<Simd<S>, 2>& sums) DEQ_INLINE {
        const Index place = (n * g.pixels + p) * g.channels + c;
        const Simd<S> from_mean = load(u + place, width) - of.mean;
        Simd<S> d = load(cotangent + (average ? n * g.channels + c : place), width);
        if constexpr (passed == Passed::where_y) d = before_relu<S>(d, load(y + place, width));
        if constexpr (passed == Passed::where_u)
          d = before_relu<S>(d, from_mean * of.factor + of.bias);
        sums[0] += d;
        sums[1] += d * from_mean;
      };
    });
  });
  const S share = norm.share_of_pixel();
  for (Index n = 0; n < g.samples; ++n)
    for (Index c = 0; c < g.channels; ++c) {
      sums_d[n * g.channels + c] *= share;
      sums_du[n * g.channels + c] *= share * norm.inverse[g.statistic(n, c)];
    }
}

/// Nothing for a cotangent that nobody wants.
template <class S, class Width>
DEQ_INLINE inline void put(const NhwcSink<S>& sink, Index place, const Simd<S>& value,
                           Width width) {
  if (!sink.data) return;
  store(sink.data + place, sink.accumulate ? load(sink.data + place, width) + value : value, width);
}

/// du = inverse (e - mean(e) - v mean(e v)), e = weight d, v = (u - mean) inverse, the means over
/// each group, by the sums of normalize_vjp_sums, over all samples where those share statistics;
/// null if the statistics are constants, whose terms then are 0. `of_residual` gets d, then `of_u`,
/// which may be the same memory, du, and `masked` (not accumulated) du times the mask (N, C) that u
/// was multiplied with.
template <class S>
void normalize_vjp(const NhwcNorm<S>& norm, const S* u, const S* y, const S* cotangent,
                   const S* sums_d, const S* sums_du, const S* mask, NhwcSink<S> of_residual,
                   NhwcSink<S> of_u, S* masked) {
  const NormGeometry& g = norm.geometry;
  const Index group = g.channels_per_statistic;
  const S count = static_cast<S>(g.count()), share = norm.share_of_pixel();
  for_each_pixel_piece(g, [&](Index n, Index, Index first, Index last) {
    const ChannelTable<S> table(7, g.channels);
    const Index sums = g.shared ? 0 : n * g.channels;
    for (Index start = 0; start < g.channels; start += group) {
      S mean_e = 0, mean_ev = 0;
      for (Index c = start; sums_d && c < start + group; ++c) {
        mean_e += norm.scale(c) * sums_d[sums + c] / count;
        mean_ev += norm.scale(c) * sums_du[sums + c] / count;
      }
      for (Index c = start; c < start + group; ++c) {
        const Index s = g.statistic(n, c);
        const S inverse = norm.inverse[s];
        table.row(0)[c] = norm.mean[s];
        table.row(1)[c] = norm.factor(s, c);
        table.row(2)[c] = inverse * mean_e;
        table.row(3)[c] = inverse * inverse * mean_ev;
        table.row(4)[c] = mask ? mask[n * g.channels + c] : S(1);
        table.row(5)[c] = norm.shift(c);
        table.row(6)[c] = norm.average ? cotangent[n * g.channels + c] * share : S(0);
      }
    }
    table.repeat();
    const Index begin = (n * g.pixels + first) * g.channels, size = (last - first) * g.channels;
    const S *const mean = table.row(0), *const of_d = table.row(1), *const offset = table.row(2),
                   *const of_from_mean = table.row(3), *const of_mask = table.row(4),
                   *const bias = table.row(5), *const of_average = table.row(6);
    by_relu(norm, y, [&](auto passed) {
      table.for_each_vector(size, [&](Index i, Index c, auto width) DEQ_INLINE {
        const Index place = begin + i;
        const Simd<S> from_mean = load(u + place, width) - load(mean + c);
        Simd<S> d = load(norm.average ? of_average + c : cotangent + place, width);
        if constexpr (passed == Passed::where_y) d = before_relu<S>(d, load(y + place, width));
        if constexpr (passed == Passed::where_u)
          d = before_relu<S>(d, from_mean * load(of_d + c) + load(bias + c));
        const Simd<S> du =
            d * load(of_d + c) - load(offset + c) - from_mean * load(of_from_mean + c);
        put(of_residual, place, d, width);
        put(of_u, place, du, width);
        if (masked) store(masked + place, du * load(of_mask + c), width);
      });
    });
  });
}

}  // namespace deq::detail
