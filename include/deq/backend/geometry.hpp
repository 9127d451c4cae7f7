// SPDX-License-Identifier: MIT
// What a kernel of a tensor operation is told about extents. Plain numbers, for any backend.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include <deq/core/shape.hpp>

namespace deq {

/// C (m x n) = op(A) op(B), row-major and dense; op(A) is m x k, op(B) is k x n.
struct GemmGeometry {
  Index m = 0, n = 0, k = 0;
  bool transpose_a = false;  ///< A is stored as k x m
  bool transpose_b = false;  ///< B is stored as n x k
};

/// Cross-correlation of NCHW maps with weights (out, in, kernel, kernel).
struct Conv2dGeometry {
  Index samples = 0;
  Index in_channels = 0, height = 0, width = 0;
  Index out_channels = 0, kernel_height = 0, kernel_width = 0;
  Index stride = 1, padding = 0;

  DEQ_HOST_DEVICE Index out_height() const {
    return (height + 2 * padding - kernel_height) / stride + 1;
  }
  DEQ_HOST_DEVICE Index out_width() const {
    return (width + 2 * padding - kernel_width) / stride + 1;
  }
  DEQ_HOST_DEVICE Index in_pixels() const { return height * width; }
  DEQ_HOST_DEVICE Index out_pixels() const { return out_height() * out_width(); }
  DEQ_HOST_DEVICE Index kernel_size() const { return kernel_height * kernel_width; }
  /// Terms of the sum that one output value is.
  DEQ_HOST_DEVICE Index patch() const { return in_channels * kernel_size(); }
  /// The patches of the output pixels are the input itself.
  bool pointwise() const { return kernel_size() == 1 && stride == 1 && padding == 0; }
};

/// A tensor (samples, channels, pixels) whose normalisation has one mean and one deviation for
/// every block of `channels_per_statistic` channels, of each sample or (`shared`) of the whole
/// batch.
struct NormGeometry {
  Index samples = 0, channels = 0, pixels = 0;
  Index channels_per_statistic = 1;
  bool shared = false;

  DEQ_HOST_DEVICE Index groups() const { return channels / channels_per_statistic; }
  DEQ_HOST_DEVICE Index statistics() const { return (shared ? 1 : samples) * groups(); }
  /// Numbers that one statistic is taken of.
  DEQ_HOST_DEVICE Index count() const {
    return (shared ? samples : 1) * channels_per_statistic * pixels;
  }
  DEQ_HOST_DEVICE Index statistic(Index sample, Index channel) const {
    return (shared ? 0 : sample * groups()) + channel / channels_per_statistic;
  }
  DEQ_HOST_DEVICE Index offset(Index sample, Index channel) const {
    return (sample * channels + channel) * pixels;
  }
};

/// Where the statistics of a normalisation go, by NormGeometry::statistic: mean, biased variance
/// (null: nobody wants it) and 1 / sqrt(variance + eps).
template <class S>
struct NormStatistics {
  S eps;
  S *mean, *variance, *inverse;

  DEQ_HOST_DEVICE void put(Index i, S m, S v) const {
    mean[i] = m;
    if (variance) variance[i] = v;
    inverse[i] = 1 / std::sqrt(v + eps);
  }
};

/// What happens to a convolution x * w before it is normalised: u = (x * w + bias) mask + addend. A
/// null pointer is a step left out. Images are stored as X.
template <class S, class X = S>
struct NhwcConvParts {
  const S* bias = nullptr;    ///< (C)
  const S* mask = nullptr;    ///< (N, C)
  const X* addend = nullptr;  ///< (N, pixels, C)
};

/// A normalisation of channels-last images that has its statistics: y = relu((u - mean) inverse
/// weight + bias + residual), or without a residual the mean of that over the pixels, (N, C). A
/// null pointer is a step left out.
template <class S>
struct NhwcNorm {
  NormGeometry geometry;
  const S *mean, *inverse;    ///< by NormGeometry::statistic
  const S* weight = nullptr;  ///< (C)
  const S* bias = nullptr;    ///< (C)
  bool relu = false;
  bool average = false;

  DEQ_HOST_DEVICE S scale(Index channel) const { return weight ? weight[channel] : S(1); }
  DEQ_HOST_DEVICE S shift(Index channel) const { return bias ? bias[channel] : S(0); }
  /// Before the residual y is (u - mean) factor + shift; where that is positive, forward and
  /// backward have to agree.
  DEQ_HOST_DEVICE S factor(Index statistic, Index channel) const {
    return inverse[statistic] * scale(channel);
  }
  /// Of what a pixel is worth, in y.
  DEQ_HOST_DEVICE S share_of_pixel() const {
    return average ? 1 / static_cast<S>(geometry.pixels) : S(1);
  }
};

/// Where a kernel that computes several cotangents puts one; null if nobody wants it.
template <class S>
struct NhwcSink {
  S* data = nullptr;
  bool accumulate = false;
};

/// Channels-last images, each pixel of which stands for a factor x factor square.
struct NhwcUpsampling {
  Index samples = 0, height = 0, width = 0, channels = 0, factor = 1;
};

/// One of several such images that are added to a larger one.
template <class X>
struct NhwcSmallImage {
  NhwcUpsampling geometry;
  const X* data;
};

/// `planes` maps of height x width small pixels, each of which stands for a factor x factor square.
struct PoolGeometry {
  Index planes = 0, height = 0, width = 0, factor = 1;
};

/// A parameter and what Adam keeps for it, n numbers each.
template <class S>
struct AdamTensor {
  S* theta;
  const S* gradient;
  S *first, *second;  ///< moments
  Index n;
};
/// One step of Adam (see deq::Adam): the part that is the same in every step, and where the two
/// numbers are that are not.
template <class S>
struct AdamStep {
  S weight_decay, first_rate, second_decay, second_rate, epsilon;
  const S* numbers;  ///< in the backend's memory: learning rate / (1 - beta1^t), sqrt(1 - beta2^t)

  DEQ_HOST_DEVICE void operator()(const AdamTensor<S>& t, Index i, S rate, S root) const {
    const S g = t.gradient[i] + weight_decay * t.theta[i];
    const S m = t.first[i] + first_rate * (g - t.first[i]);
    const S v = second_decay * t.second[i] + second_rate * g * g;
    t.first[i] = m;
    t.second[i] = v;
    t.theta[i] -= rate * m / (std::sqrt(v) / root + epsilon);
  }
};

/// Planar images of bytes, one after the other, each with a border of zero bytes on every side.
struct ImageGeometry {
  Index channels = 0, height = 0, width = 0, border = 0;

  DEQ_HOST_DEVICE Index pixels() const { return height * width; }
  DEQ_HOST_DEVICE Index size() const { return channels * pixels(); }
};
/// What is cut out of one image, border and all: a rectangle of its size whose corner is at (top,
/// left), then mirrored left to right or not.
struct ImageCut {
  Index image = 0, top = 0, left = 0;
  bool flip = false;

  /// Byte (y, x) of the cut of a plane.
  DEQ_HOST_DEVICE std::uint8_t byte(const ImageGeometry& g, const std::uint8_t* plane, Index y,
                                    Index x) const {
    const Index line = y + top - g.border, column = (flip ? g.width - 1 - x : x) + left - g.border;
    const bool inside = line >= 0 && line < g.height && column >= 0 && column < g.width;
    return inside ? plane[line * g.width + column] : std::uint8_t{0};
  }
};

/// `count` strips of `length` contiguous numbers, at these distances from each other.
struct StripGeometry {
  Index count = 0, length = 0;
  Index from_stride = 0, to_stride = 0;

  static StripGeometry single(Index n) { return {1, n, n, n}; }
};

/// A loop nest over the elements of a tensor, and where K operands are in it: operand k advances by
/// stride[k][d] in dimension d, by 0 where it is broadcast. Adjacent dimensions in which no operand
/// tells the difference are one: equal shapes give one long loop, a mask (N, C, 1, 1) on (N, C, H,
/// W) a nest of two. Dimension 0 is the innermost; there every stride is 0 or 1.
template <std::size_t K>
struct LoopNest {
  using Extents = std::array<Index, static_cast<std::size_t>(Shape::max_rank)>;
  Index rank = 0;
  Extents extent{};
  std::array<Extents, K> stride{};

  /// Over `full`; each operand broadcasts to it, as NumPy has it: shapes are aligned at their ends,
  /// and an extent that is missing or 1 is repeated.
  LoopNest(const Shape& full, const std::array<Shape, K>& operands) {
    std::array<Index, K> dense;
    dense.fill(1);
    for (Index back = 1; back <= full.rank(); ++back) {
      Extents step{};
      for (std::size_t k = 0; k < K; ++k) {
        const Index n = back <= operands[k].rank() ? operands[k][-back] : 1;
        step[k] = n == 1 ? 0 : dense[k];
        dense[k] *= n;
      }
      if (full[-back] == 1) continue;
      if (rank == 0 || !merges(step)) {
        for (std::size_t k = 0; k < K; ++k) stride[k][static_cast<std::size_t>(rank)] = step[k];
        extent[static_cast<std::size_t>(rank++)] = full[-back];
      } else {
        extent[static_cast<std::size_t>(rank - 1)] *= full[-back];
      }
    }
    if (rank == 0) {
      rank = 1;
      extent[0] = 1;
      for (Extents& s : stride) s[0] = 1;
    }
  }

 private:
  bool merges(const Extents& step) const {
    const auto inner = static_cast<std::size_t>(rank - 1);
    for (std::size_t k = 0; k < K; ++k)
      if (step[k] != stride[k][inner] * extent[inner]) return false;
    return true;
  }
};

}  // namespace deq
