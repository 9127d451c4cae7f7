// SPDX-License-Identifier: MIT
// Means and variances in two passes: over the numbers, part by part, by whoever writes or reads
// them anyway, and over the parts.
#pragma once

#include <algorithm>
#include <utility>

#include <deq/backend/cuda/divisor.hpp>
#include <deq/backend/cuda/team.cuh>
#include <deq/backend/geometry.hpp>

namespace deq::cuda {

/// Moments of n channels over as many numbers each: of a thread, or of several.
template <class S, int n>
struct Moments {
  S count = 0, mean[n] = {}, squares[n] = {};

  Moments() = default;
  /// Of two numbers a channel; of one, the first, if count is 1, of none if it is 0.
  __device__ Moments(const S (&first)[n], const S (&second)[n], S numbers) : count(numbers) {
    const S share = count > S(1) ? S(0.5) : S(0);
#pragma unroll
    for (int i = 0; i < n; ++i) {
      const S distance = second[i] - first[i];
      mean[i] = first[i] + distance * share;
      squares[i] = distance * distance * share;
    }
  }
};
/// The moments of this thread and of the one `distance` lanes away, put together: the upper one
/// gets those of the odd channels, the lower one the others; of a single one both get them.
template <int distance, class S, int n>
__device__ auto halved(const Moments<S, n>& mine) {
  constexpr unsigned warp = 0xffffffffu;
  constexpr int left = n > 1 ? n / 2 : 1, step = n / left;
  const bool upper = threadIdx.x & distance;
  Moments<S, left> both;
  const S others = __shfl_xor_sync(warp, mine.count, distance);
  both.count = mine.count + others;
  S share = S(0.5);  // of their numbers; mostly all have as many
  if (others != mine.count) share = others / both.count;
  const S weight = mine.count * share;
  const auto swap = [upper](S even, S odd) {  // keeps one, gets that of the other thread
    const S theirs = __shfl_xor_sync(warp, upper ? even : odd, distance);
    return std::pair(upper ? odd : even, theirs);
  };
#pragma unroll
  for (int i = 0; i < left; ++i) {
    const int even = step * i, odd = even + step - 1;
    const auto [mean, of_theirs] = swap(mine.mean[even], mine.mean[odd]);
    const auto [squares, their_squares] = swap(mine.squares[even], mine.squares[odd]);
    const S d = of_theirs - mean;
    both.mean[i] = mean + d * share;
    both.squares[i] = squares + their_squares + d * d * weight;
  }
  return both;
}

/// Means and squared deviations of the channels of samples, taken in parts; a later pass puts the
/// parts together. A part has, for every channel,
///
///     mean,   M2 = sum (y - mean)^2   over `count` pixels
///
/// | count | 1 a part | mean | C a part | M2 | C a part |
template <class T>
struct MomentParts {
  T* data;
  Index channels, parts;  ///< parts of every sample

  DEQ_HOST_DEVICE static Index part_size(Index of_channels) { return 1 + 2 * of_channels; }
  DEQ_HOST_DEVICE T* part(Index sample, Index p) const {
    return data + (sample * parts + p) * part_size(channels);
  }
};

/// Moments of channels as one thread has them: of items that are `step` apart.
template <class S>
struct MomentsOfThread {
  static constexpr int items = 8;
  S count[items], mean[items], squares[items];

  /// Of the parts of a sample, `width` channels of each from `channel` on are items. All loads are
  /// on their way at once.
  __device__ MomentsOfThread(const MomentParts<const S>& moments, Index sample, int channel,
                             const Divisor& by_width, int width, int last, int first, int step) {
#pragma unroll
    for (int k = 0; k < items; ++k) {
      const int item = first + k * step;
      count[k] = mean[k] = squares[k] = 0;
      if (item >= last) continue;
      const int p = by_width.quotient(item), c = channel + item - p * width;
      const S* const part = moments.part(sample, p);
      count[k] = part[0];
      mean[k] = part[1 + c];
      squares[k] = part[1 + moments.channels + c];
    }
#pragma unroll
    for (int k = 0; k < items; ++k)
      if (count[k] == S(0)) mean[k] = squares[k] = 0;  // nobody has written them
  }
};

/// Each statistic by a team of `size` threads.
template <int size, class S>
void add_moments(const NormGeometry& g, const MomentParts<const S>& moments,
                 const NormStatistics<S>& to) {
  using Some = MomentsOfThread<S>;
  const Index groups = g.groups();
  const int width = static_cast<int>(g.channels_per_statistic);
  const int items = static_cast<int>(moments.parts * (g.shared ? g.samples : 1)) * width;
  const Divisor by_width(std::max(width, 1));
  for_each_team<size>(g.statistics(), [=] __device__(Index s, Team<size> team) {
    const Index sample = s / groups;
    const int channel = width * static_cast<int>(s - sample * groups);
    constexpr int batch = size * Some::items;
    const auto load = [&](int first) {
      return Some(moments, sample, channel, by_width, width, items, first + team.rank, size);
    };
    const auto add_up = [](const Some& some, S(&sum)[2]) {
#pragma unroll
      for (int k = 0; k < Some::items; ++k) {
        sum[0] += some.count[k];
        sum[1] += some.count[k] * some.mean[k];
      }
    };
    const Some first = load(0);  // mostly all there are
    S sum[2] = {};               // of the counts and of the numbers
    add_up(first, sum);
    for (int i = batch; i < items; i += batch) add_up(load(i), sum);
    team.add(sum);
    const S count = sum[0], mean = sum[1] / count;
    const auto add_squares = [mean](const Some& some, S(&squares)[1]) {
#pragma unroll
      for (int k = 0; k < Some::items; ++k) {
        if (some.count[k] == S(0)) continue;
        const S d = some.mean[k] - mean;
        squares[0] += some.squares[k] + some.count[k] * d * d;
      }
    };
    S squares[1] = {};
    add_squares(first, squares);
    for (int i = batch; i < items; i += batch) add_squares(load(i), squares);
    team.add(squares);
    if (team.rank == 0) to.put(s, mean, squares[0] / count);
  });
}
/// The statistics of every group, of every sample or of all of them, from the moments of
/// the channels in `parts` a sample (Chan, Golub and LeVeque, 1979), as MomentParts has them. What
/// a part has that counts no pixels does not matter.
template <class S>
void group_statistics_of_moments(const NormGeometry& g, Index parts, const S* moments,
                                 const NormStatistics<S>& to) {
  if (g.shared) require_all_rows(g.samples, "statistics of a batch");
  const MomentParts<const S> all{moments, g.channels, parts};
  constexpr Index most = 4 * warp_threads * MomentsOfThread<S>::items;  // of a warp, in four rounds
  if (g.shared || parts * g.channels_per_statistic > most)
    add_moments<threads>(g, all, to);
  else
    add_moments<warp_threads>(g, all, to);
}

}  // namespace deq::cuda
