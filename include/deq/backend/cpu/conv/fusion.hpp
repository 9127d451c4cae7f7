// SPDX-License-Identifier: MIT
// What happens to an output on its way from the registers to memory.
#pragma once

#include <deq/backend/cpu/conv/kernel.hpp>
#include <deq/backend/cpu/conv/layout.hpp>

namespace deq::detail {

/// Means and squared deviations of the channels of samples, taken in parts while somebody writes
/// the numbers; a later pass puts the parts together. A part has, for every channel,
///
///     mean,   M2 = sum (y - mean)^2   over `count` pixels
///
/// | count | 1 a part | mean | C a part | M2 | C a part |
template <class S>
struct MomentParts {
  S* data = nullptr;
  Index channels = 0, parts = 0;  ///< parts of every sample

  explicit operator bool() const { return data != nullptr; }
  Index part_size() const { return 1 + 2 * channels; }
  S* part(Index sample, Index p) const { return data + (sample * parts + p) * part_size(); }
};

/// Sums vectors in runs, so that long sums round like short ones.
template <class S>
class RunSum {
 public:
  DEQ_INLINE void add(const Simd<S>& x) {
    run_ += x;
    if (++count_ % run == 0) fold();
  }
  Simd<S> total() const { return total_ + run_; }
  Index count() const { return count_; }

 private:
  static constexpr Index run = 16;
  DEQ_INLINE void fold() {
    total_ += run_;
    run_ = Simd<S>{};
  }
  Simd<S> total_{}, run_{};
  Index count_ = 0;
};

/// Takes the moments of one vector of channels in registers. Sums are taken about the first value,
/// so that a large mean costs no accuracy.
template <class S>
class MomentSums {
 public:
  DEQ_INLINE void add(const Simd<S>& y) {
    if (sum_.count() == 0) pivot_ = y;
    const Simd<S> d = y - pivot_;
    sum_.add(d);
    squares_.add(d * d);
  }
  /// Into a part, from `channel` on.
  void store_to(const MomentParts<S>& moments, Index sample, Index part, Index channel) const {
    S* p = moments.part(sample, part);
    const S n = static_cast<S>(sum_.count());
    const Index width = moments.channels - channel;
    p[0] = n;
    if (sum_.count() == 0) return;
    const Simd<S> sum = sum_.total();
    store(p + 1 + channel, pivot_ + sum / n, width);
    store(p + 1 + moments.channels + channel, squares_.total() - sum * sum / n, width);
  }

 private:
  Simd<S> pivot_{};
  RunSum<S> sum_, squares_;
};

/// y = (conv + bias_c) mask_nc + addend_npc on the way to memory, and its moments. A null pointer
/// is a step left out.
template <class S>
struct Epilogue {
  const S* bias = nullptr;    ///< (C)
  const S* mask = nullptr;    ///< (N, C)
  const S* addend = nullptr;  ///< (N, pixels, C)
  MomentParts<S> moments = {};
};

/// Writes one panel of channels of one part, a sample after the other.
template <class S>
class PanelWriter {
 public:
  PanelWriter(const Epilogue<S>& epilogue, Index pixels, Index channels, Index first_channel, S* y,
              Index part)
      : epilogue_(epilogue),
        sample_size_(pixels * channels),
        channels_(channels),
        first_(first_channel),
        part_(part),
        y_(y) {}
  PanelWriter(const PanelWriter&) = delete;
  PanelWriter& operator=(const PanelWriter&) = delete;
  ~PanelWriter() { finish(); }

  /// What follows belongs to this sample.
  void select(Index sample) {
    if (sample == sample_) return;
    finish();
    sample_ = sample;
    for (int v = 0; v < max_panel; ++v) {
      const Index channel = first_ + v * simd_width<S>, width = channels_ - channel;
      if (width <= 0) break;
      const Simd<S> one = broadcast(S(1));
      mask_[v] = epilogue_.mask ? load(epilogue_.mask + sample * channels_ + channel, width) : one;
      bias_[v] = epilogue_.bias ? load(epilogue_.bias + channel, width) : Simd<S>{};
      sums_[v] = {};
    }
  }
  /// Vector v of the panel, at one pixel. Vectors beyond the last channel go nowhere.
  DEQ_INLINE void write(int v, Index pixel, Simd<S> y) {
    const Index channel = first_ + v * simd_width<S>, width = channels_ - channel;
    const Index place = sample_ * sample_size_ + pixel * channels_ + channel;
    if (epilogue_.bias || epilogue_.mask) y = (y + bias_[v]) * mask_[v];
    if (epilogue_.addend) y += load(epilogue_.addend + place, width);
    store(y_ + place, y, width);
    if (epilogue_.moments) sums_[v].add(y);
  }

 private:
  void finish() {
    if (sample_ < 0 || !epilogue_.moments) return;
    for (int v = 0; v < max_panel && first_ + v * simd_width<S> < channels_; ++v)
      sums_[v].store_to(epilogue_.moments, sample_, part_, first_ + v * simd_width<S>);
  }

  const Epilogue<S>& epilogue_;
  Index sample_size_, channels_, first_, part_;
  S* y_;
  Index sample_ = -1;
  Simd<S> bias_[max_panel], mask_[max_panel];
  MomentSums<S> sums_[max_panel];
};

}  // namespace deq::detail
