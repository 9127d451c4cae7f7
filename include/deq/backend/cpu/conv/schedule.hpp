// SPDX-License-Identifier: MIT
// Which algorithm computes a convolution, and how the work is cut.
#pragma once

#include <deq/backend/cpu/conv/direct_conv.hpp>
#include <deq/backend/cpu/conv/onednn.hpp>
#include <deq/backend/cpu/conv/weight_gradient.hpp>
#include <deq/backend/cpu/conv/winograd_conv.hpp>

namespace deq::detail {

enum class ConvAlgorithm { direct, winograd2, winograd4, onednn };

/// The engine's own algorithm for a convolution, or for the transpose of one.
inline ConvAlgorithm own_algorithm(const Conv2dGeometry& g, bool transposed) {
  // Of the image that is written.
  const Index side =
      transposed ? std::min(g.height, g.width) : std::min(g.out_height(), g.out_width());
  // Below eight channels the tiles' transforms cost more than they save.
  const bool tiles = g.kernel_height == 3 && g.kernel_width == 3 && g.stride == 1 &&
                     g.padding <= 2 && std::min(g.in_channels, g.out_channels) >= 8;
  if (!tiles || side < 2) return ConvAlgorithm::direct;
  // The transformed weights of large tiles are four times the weights. Where they meet few pixels,
  // the memory cannot keep up.
  return side > 4 ? ConvAlgorithm::winograd4 : ConvAlgorithm::winograd2;
}
/// The algorithm that computes it.
template <class S>
ConvAlgorithm algorithm_for(const Conv2dGeometry& g, bool transposed) {
  return has_onednn<S> ? ConvAlgorithm::onednn : own_algorithm(g, transposed);
}

/// The plan for one convolution, or for the transpose of one. It depends on extents alone, so the
/// bits of a result depend neither on threads nor on other samples.
template <class S>
struct ConvPlan {
  Conv2dGeometry geometry;  ///< of the convolution; of its transpose, if Winograd computes it
  bool transposed;
  Index in, out;  ///< channels read and written
  ConvAlgorithm algorithm;
  Pieces pieces;

  ConvPlan(const Conv2dGeometry& g, bool transpose)
      : ConvPlan(g, transpose, algorithm_for<S>(g, transpose)) {}
  /// Winograd's algorithms take 3 x 3 kernels of stride 1 and a padding of at most 2.
  ConvPlan(const Conv2dGeometry& g, bool transpose, ConvAlgorithm a)
      : geometry(g),
        transposed(transpose),
        in(transpose ? g.out_channels : g.in_channels),
        out(transpose ? g.in_channels : g.out_channels),
        algorithm(a),
        pieces(0, 0, 1) {
    if (tiled() && transpose)
      geometry = {g.samples, in, g.out_height(), g.out_width(), out, 3, 3, 1, 2 - g.padding};
    pieces = {g.samples, units(), unit_target()};
  }

  Index packed_size() const {
    if constexpr (has_onednn<S>)
      if (algorithm == ConvAlgorithm::onednn) return onednn_packed_size(geometry, transposed);
    return deq::detail::packed_size<S>(in, out, points());
  }

  void pack(const S* w, S* packed) const {
    const WeightView<S> view{w, in, out, geometry.kernel_size(), transposed};
    switch (algorithm) {
      case ConvAlgorithm::winograd2: return pack_winograd<2>(view, packed);
      case ConvAlgorithm::winograd4: return pack_winograd<4>(view, packed);
      case ConvAlgorithm::direct: return pack_taps(view, packed);
      case ConvAlgorithm::onednn:
        if constexpr (has_onednn<S>) pack_onednn(geometry, transposed, w, packed);
    }
  }
  void run(const S* x, const S* packed, const Epilogue<S>& epilogue, S* y) const {
    switch (algorithm) {
      case ConvAlgorithm::winograd2:
        return convolve_winograd<2>(geometry, x, packed, epilogue, y, pieces);
      case ConvAlgorithm::winograd4:
        return convolve_winograd<4>(geometry, x, packed, epilogue, y, pieces);
      case ConvAlgorithm::direct:
        return convolve_direct(geometry, transposed, in, out, x, packed, epilogue, y, pieces);
      case ConvAlgorithm::onednn:
        if constexpr (has_onednn<S>) convolve_onednn(geometry, transposed, x, packed, epilogue, y);
    }
  }

 private:
  bool tiled() const {
    return algorithm == ConvAlgorithm::winograd2 || algorithm == ConvAlgorithm::winograd4;
  }
  /// Products of the packed weights.
  Index points() const {
    switch (algorithm) {
      case ConvAlgorithm::winograd2: return 16;
      case ConvAlgorithm::winograd4: return 36;
      default: return geometry.kernel_size();
    }
  }
  /// What pieces are counted in: tiles, pixels of a class, or samples.
  Index units() const {
    switch (algorithm) {
      case ConvAlgorithm::winograd2: return Tiles<2>(geometry).count();
      case ConvAlgorithm::winograd4: return Tiles<4>(geometry).count();
      case ConvAlgorithm::direct: return Footprint(geometry, transposed).class_pixels(0);
      case ConvAlgorithm::onednn: break;
    }
    return 1;
  }
  /// A piece's transformed input stays in a second-level cache of half a MiB; one image of 16 x 16
  /// still keeps two threads busy. Weights that no such cache holds are read again by every piece,
  /// which is then larger.
  Index unit_target() const {
    if (algorithm == ConvAlgorithm::onednn) return 1;
    if (algorithm == ConvAlgorithm::direct) return 128;
    constexpr Index cache = 288 * 1024;
    const Index tile = points() * in * static_cast<Index>(sizeof(S));
    const Index most = algorithm == ConvAlgorithm::winograd4 ? 32 : 64;
    if (!weight_stays_near<S>(in, out, points())) return 64;
    const Index target = std::clamp<Index>(cache / tile, winograd_group, most);
    return units() >= winograd_group ? std::min(target, units() / 2) : target;
  }
};

/// dw (+)= dl/dw, summed over the samples.
template <class S>
void weight_gradient(const Conv2dGeometry& g, const S* x, const S* dy, S* dw, bool accumulate,
                     ConvAlgorithm algorithm) {
  if constexpr (has_onednn<S>)
    if (algorithm == ConvAlgorithm::onednn) return weight_gradient_onednn(g, x, dy, dw, accumulate);
  if (algorithm == ConvAlgorithm::winograd4)
    weight_gradient_winograd<4>(g, x, dy, dw, accumulate);
  else
    weight_gradient_direct(g, x, dy, dw, accumulate);
}
template <class S>
void weight_gradient(const Conv2dGeometry& g, const S* x, const S* dy, S* dw, bool accumulate) {
  weight_gradient(g, x, dy, dw, accumulate, algorithm_for<S>(g, false));
}

}  // namespace deq::detail
