// SPDX-License-Identifier: MIT
// Weights in the order in which the inner loop reads them.
#pragma once

#include <deq/backend/cpu/conv/kernel.hpp>
#include <deq/backend/cpu/conv/layout.hpp>
#include <deq/backend/cpu/conv/winograd.hpp>

namespace deq::detail {

/// How the output channels are cut into panels: of two vectors, or, where that would leave one over
/// and it can be avoided, of three. Blocks one vector wide wait for the memory.
template <class S>
struct Panels {
  Index vectors;     ///< of all output channels
  int width;         ///< vectors of every panel but perhaps the last
  bool last_paired;  ///< the last is a vector and a half

  explicit Panels(Index channels)
      : vectors(simd_count<S>(channels)),
        width(vectors % 2 == 1 && vectors % 3 == 0
                  ? 3
                  : static_cast<int>(std::clamp<Index>(vectors, 1, 2))),
        last_paired(false) {}
  /// For a convolution of so many input channels.
  Panels(Index channels, Index in) : Panels(channels) {
    last_paired = sizeof(S) == 4 && in % 2 == 0 &&
                  channels % (2 * simd_width<S>) == simd_width<S> + simd_width<S> / 2;
  }

  Index count() const { return (vectors + width - 1) / width; }
  int width_of(Index panel) const {
    return static_cast<int>(std::min<Index>(width, vectors - panel * width));
  }
  Index first_channel(Index panel) const { return panel * width * simd_width<S>; }
  bool paired(Index panel) const { return last_paired && panel == count() - 1; }
  /// Numbers of a packed weight for every input channel.
  Index numbers_of(Index panel) const {
    return paired(panel) ? packed_numbers<S>(3, true) : packed_numbers<S>(width_of(panel), false);
  }
};

/// body(PanelShape) for a panel.
template <class S, class Body>
DEQ_INLINE inline void with_panel(const Panels<S>& panels, Index panel, Body&& body) {
  if constexpr (sizeof(S) == 4)
    if (panels.paired(panel)) return body(PanelShape<2, true>{});
  with_panel(panels.width_of(panel), body);
}

/// Who computes which panels of which piece: where there are fewer pieces than threads, several
/// threads share the panels of one, each reading all of its input.
class SharedPanels {
 public:
  SharedPanels(Index pieces, Index panels)
      : panels_(panels),
        shares_(detail::inside_parallel
                    ? 1
                    : std::clamp<Index>(num_threads() / std::max<Index>(pieces, 1), 1,
                                        std::max<Index>(panels, 1))),
        pieces_(pieces) {}

  Index count() const { return pieces_ * shares_; }
  Index piece(Index i) const { return i / shares_; }
  Index first(Index i) const { return i % shares_ * panels_ / shares_; }
  Index last(Index i) const { return (i % shares_ + 1) * panels_ / shares_; }

 private:
  Index panels_, shares_, pieces_;
};

/// A 3 x 3 or other weight (O, I, kh, kw), as a convolution from `in` to `out` channels reads it:
/// as it stands, or for the transpose of the convolution with the roles of the channels exchanged.
template <class S>
struct WeightView {
  const S* data;
  Index in, out, taps;
  bool transposed;

  /// Weight of an output channel, 0 beyond the last.
  S at(Index o, Index i, Index tap) const {
    if (o >= out) return 0;
    return data[(transposed ? i * out + o : o * in + i) * taps + tap];
  }
  Simd<S> vector(Index first, Index i, Index tap) const {
    Simd<S> v{};
    for (Index l = 0; l < simd_width<S>; ++l) v[l] = at(first + l, i, tap);
    return v;
  }
  /// Vector v of a paired panel.
  Simd<S> paired_vector(Index first, int v, Index i, Index tap) const {
    Simd<S> w{};
    for (Index l = 0; l < simd_width<S>; ++l)
      w[l] = at(first + paired_channel<S>(v, l), i + paired_input(l), tap);
    return w;
  }
};

/// Numbers of a packed weight: (panel, point, input channel, output channel of the panel), or
/// fewer. The points are the taps of the kernel, or the products of Winograd's tile.
template <class S>
Index packed_size(Index in, Index out, Index points) {
  return Panels<S>(out).vectors * simd_width<S> * points * in;
}

/// Whether a second-level cache keeps the packed weight.
template <class S>
bool weight_stays_near(Index in, Index out, Index points) {
  return packed_size<S>(in, out, points) * Index{sizeof(S)} <= 2 * 1024 * 1024;
}

/// body(vector, place) for every vector of the packed weight: vector(tap) is of the weight, place(
/// point) where the packed one is.
template <class S, class Body>
void for_each_packed(const WeightView<S>& w, Index points, S* packed, Body body) {
  const Panels<S> panels(w.out, w.in);
  parallel_for(
      panels.count(),
      [&](Index panel) {
        const Index channel = panels.first_channel(panel), numbers = panels.numbers_of(panel);
        S* const start = packed + channel * points * w.in;
        with_panel(panels, panel, [&](auto shape) {
          for (Index i = 0; i < w.in; i += shape.paired ? 2 : 1)
            for (int v = 0; v < shape.sums; ++v)
              body(
                  [&](Index tap) {
                    return shape.paired ? w.paired_vector(channel, v, i, tap)
                                        : w.vector(channel + v * simd_width<S>, i, tap);
                  },
                  [=](Index point) {
                    return start + (point * w.in + i) * numbers + v * simd_width<S>;
                  });
        });
      },
      w.in * w.out * points < 65536);
}

template <class S>
void pack_taps(const WeightView<S>& w, S* packed) {
  for_each_packed(w, w.taps, packed, [&](auto vector, auto place) {
    for (Index tap = 0; tap < w.taps; ++tap) store(place(tap), vector(tap));
  });
}

/// w (+)= a packed weight of one's own making; the way back of pack_taps without transposition.
template <class S>
void unpack_taps(Index in, Index out, Index taps, const S* packed, S* w, bool accumulate) {
  const Panels<S> panels(out);
  for (Index o = 0; o < out; ++o) {
    const Index panel = o / (panels.width * simd_width<S>);
    const Index width = panels.width_of(panel) * simd_width<S>;
    const S* from =
        packed + panels.first_channel(panel) * taps * in + o % (panels.width * simd_width<S>);
    for (Index i = 0; i < in; ++i)
      for (Index tap = 0; tap < taps; ++tap) {
        S& to = w[(o * in + i) * taps + tap];
        const S value = from[(tap * in + i) * width];
        to = accumulate ? to + value : value;
      }
  }
}

/// G g G^T; of the transposed convolution, whose kernel is turned by half a circle.
template <int M, class S>
void pack_winograd(const WeightView<S>& w, S* packed) {
  constexpr int n = Winograd<M>::tile;
  for_each_packed(w, n * n, packed, [&](auto vector, auto place) {
    on_both_sides<n, 3>(
        [&](Index row, Index column) DEQ_INLINE {
          const Index tap = row * 3 + column;
          return vector(w.transposed ? 8 - tap : tap);
        },
        [](const auto& a, auto& b) DEQ_INLINE { Winograd<M>::weights(a, b); },
        [&](Index row, Index column, const Simd<S>& u)
            DEQ_INLINE { store(place(row * n + column), u); });
  });
}

/// w (+)= G^T u G of packed sums u; the transpose of pack_winograd without transposition.
template <int M, class S>
void unpack_winograd(Index in, Index out, const S* packed, S* w, bool accumulate) {
  constexpr int n = Winograd<M>::tile;
  const Panels<S> panels(out);
  for (Index p = 0; p < panels.count(); ++p) {
    const Index width = panels.width_of(p) * simd_width<S>, first = panels.first_channel(p);
    const S* const panel = packed + first * n * n * in;
    for (Index i = 0; i < in; ++i)
      for (Index v = 0; v < width; v += simd_width<S>) {
        Simd<S> g[9];
        on_both_sides<3, n>(
            [&](Index row, Index column)
                DEQ_INLINE { return load(panel + ((row * n + column) * in + i) * width + v); },
            [](const auto& a, auto& b) DEQ_INLINE { Winograd<M>::weights_transposed(a, b); },
            [&](Index row, Index column, const Simd<S>& value)
                DEQ_INLINE { g[row * 3 + column] = value; });
        for (Index l = 0; l < std::min(simd_width<S>, out - first - v); ++l) {
          S* const to = w + ((first + v + l) * in + i) * 9;
          for (int tap = 0; tap < 9; ++tap) to[tap] = (accumulate ? to[tap] : S(0)) + g[tap][l];
        }
      }
  }
}

}  // namespace deq::detail
