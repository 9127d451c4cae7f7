// SPDX-License-Identifier: MIT
// Means and variances in two passes: over the numbers, part by part, by whoever writes or reads
// them anyway, and over the parts.
#pragma once

#include <deq/backend/cuda/team.cuh>
#include <deq/backend/geometry.hpp>

namespace deq::cuda {

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

/// Each statistic by a team of `size` threads.
template <int size, class S>
void add_moments(const NormGeometry& g, const MomentParts<const S>& moments,
                 const NormStatistics<S>& to) {
  const Index samples = g.shared ? 1 : g.samples, groups = g.groups();
  const Index parts = moments.parts * (g.shared ? g.samples : 1);
  for_each_team<size>(samples * groups, [=] __device__(Index s, Team<size> team) {
    const Index sample = s / groups;
    const int width = static_cast<int>(g.channels_per_statistic);
    // Items are channels of parts; from one of this thread to the next without a division.
    const int first = width * static_cast<int>(s % groups);
    const int step_parts = size / width, step_channels = size - step_parts * width;
    const auto for_each_part = [&](auto&& body) {
      int p = team.rank / width, c = team.rank - p * width;
      while (p < parts) {
        const S* part = moments.part(sample, p);
        if (part[0] != S(0)) body(part[0], part[1 + first + c], part[1 + g.channels + first + c]);
        p += step_parts;
        c += step_channels;
        if (c >= width) {
          c -= width;
          ++p;
        }
      }
    };
    S sum[2] = {};  // of the counts and of the numbers
    for_each_part([&](S k, S m, S) {
      sum[0] += k;
      sum[1] += k * m;
    });
    team.add(sum);
    const S count = sum[0], m = sum[1] / count;
    S squares[1] = {};
    for_each_part([&](S k, S part_mean, S part_squares) {
      squares[0] += part_squares + k * (part_mean - m) * (part_mean - m);
    });
    team.add(squares);
    if (team.rank != 0) return;
    to.put(s, m, squares[0] / count);
  });
}
/// The statistics of every group, of every sample or of all of them, from the moments of
/// the channels in `parts` a sample (Chan, Golub and LeVeque, 1979), as MomentParts has them. Of a
/// part that counts no pixels nothing else is read.
template <class S>
void group_statistics_of_moments(const NormGeometry& g, Index parts, const S* moments,
                                 const NormStatistics<S>& to) {
  const MomentParts<const S> all{moments, g.channels, parts};
  if (g.shared || parts * g.channels_per_statistic >= 2 * threads)  // long sums
    add_moments<threads>(g, all, to);
  else
    add_moments<warp_threads>(g, all, to);
}

}  // namespace deq::cuda
