// SPDX-License-Identifier: MIT
// What happens to an output on its way from the registers to memory.
#pragma once

#include <type_traits>

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

/// The moments of a vector of channels over a few pixels, in registers. Sums are taken about the
/// first value, so that a large mean costs no accuracy.
template <class S>
class MomentRun {
 public:
  /// Values that plain sums may have and still round well.
  static constexpr Index length = 16;

  DEQ_INLINE void add(const Simd<S>& y) {
    if (count_ == 0) pivot_ = y;
    const Simd<S> d = y - pivot_;
    sum_ += d;
    squares_ += d * d;
    ++count_;
  }
  bool is_long() const { return count_ >= length; }

 private:
  template <class>
  friend class Moments;
  Simd<S> pivot_{}, sum_{}, squares_{};
  Index count_ = 0;
};

/// The moments of a vector of channels, put together from runs (Chan, Golub and LeVeque, 1979).
template <class S>
class Moments {
 public:
  DEQ_INLINE void add(const MomentRun<S>& run) {
    if (run.count_ == 0) return;
    const S n = static_cast<S>(run.count_), total = count_ + n;
    const Simd<S> offset = run.sum_ / n;
    const Simd<S> distance = run.pivot_ + offset - mean_;
    mean_ += distance * (n / total);
    squares_ += run.squares_ - offset * run.sum_ + distance * distance * (count_ * n / total);
    count_ = total;
  }
  /// Into a part, from `channel` on.
  void store_to(const MomentParts<S>& moments, Index sample, Index part, Index channel) const {
    S* p = moments.part(sample, part);
    if (channel == 0) p[0] = count_;
    store(p + 1 + channel, mean_, moments.channels - channel);
    store(p + 1 + moments.channels + channel, squares_, moments.channels - channel);
  }

 private:
  Simd<S> mean_{}, squares_{};
  S count_ = 0;
};

/// body(first, last) for [first, last) in runs of a length at which plain sums still round well.
template <class S, class Body>
DEQ_INLINE inline void for_each_run(Index first, Index last, Body&& body) {
  constexpr Index run = MomentRun<S>::length;
  for (; first < last; first += run) body(first, std::min(last, first + run));
}

/// y = (conv + bias) mask + addend on the way to memory, and its moments if they have a place.
template <class S>
struct Epilogue : NhwcConvParts<S> {
  MomentParts<S> moments = {};
};

/// Writes one panel of channels of one part, a sample after the other. What is known of the
/// epilogue at compile time keeps branches out of the stores:
///   fused     there is a bias, a mask or an addend, or a vector that is neither whole nor half
///   moments   are taken
template <class S, bool fused, bool moments>
class PanelWriter {
 public:
  PanelWriter(const Epilogue<S>& epilogue, Index pixels, Index channels, Index first_channel,
              int vectors, S* y, Index part)
      : epilogue_(epilogue),
        sample_size_(pixels * channels),
        channels_(channels),
        first_(first_channel),
        part_(part),
        vectors_(vectors),
        y_(y) {}
  PanelWriter(const PanelWriter&) = delete;
  PanelWriter& operator=(const PanelWriter&) = delete;
  ~PanelWriter() { finish(); }

  /// What follows belongs to this sample.
  void select(Index sample) {
    if (sample == sample_) return;
    finish();
    sample_ = sample;
    for (int v = 0; v < vectors_; ++v) {
      const Index channel = first_ + v * simd_width<S>, width = channels_ - channel;
      mask_[v] = epilogue_.mask ? load(epilogue_.mask + sample * channels_ + channel, width)
                                : broadcast(S(1));
      bias_[v] = epilogue_.bias ? load(epilogue_.bias + channel, width) : Simd<S>{};
      sums_[v] = {};
      runs_[v] = {};
    }
  }

  /// Writes vector v of the panel at some pixels: produce(put) calls put(pixel, value) for each.
  template <class Produce>
  DEQ_INLINE void write(int v, Produce&& produce) {
    const Index channel = first_ + v * simd_width<S>, width = channels_ - channel;
    const auto all = [&](auto whole_or_part)
                         DEQ_INLINE { write(v, channel, whole_or_part, produce); };
    if constexpr (fused)
      with_width<S>(width, all);
    else
      width >= simd_width<S> ? all(Whole{}) : all(Half{});
  }

 private:
  template <class Width, class Produce>
  DEQ_INLINE void write(int v, Index channel, Width width, Produce&& produce) {
    const Index offset = sample_ * sample_size_ + channel;
    S* const y = y_ + offset;
    const S* const addend = fused && epilogue_.addend ? epilogue_.addend + offset : nullptr;
    const Index step = channels_;
    MomentRun<S> run = runs_[v];
    const Simd<S> mask = mask_[v], bias = bias_[v];
    produce([&](Index pixel, Simd<S> value) DEQ_INLINE {
      if constexpr (fused) {
        value = (value + bias) * mask;
        if (addend) value += load(addend + pixel * step, width);
      }
      store(y + pixel * step, value, width);
      if constexpr (moments) run.add(value);
    });
    if constexpr (moments) {
      if (run.is_long()) {
        sums_[v].add(run);
        run = {};
      }
      runs_[v] = run;
    }
  }

  void finish() {
    if (!moments || sample_ < 0 || !epilogue_.moments) return;
    for (int v = 0; v < vectors_; ++v) {
      sums_[v].add(runs_[v]);
      sums_[v].store_to(epilogue_.moments, sample_, part_, first_ + v * simd_width<S>);
    }
  }

  const Epilogue<S>& epilogue_;
  Index sample_size_, channels_, first_, part_;
  int vectors_;
  S* y_;
  Index sample_ = -1;
  Simd<S> bias_[max_panel], mask_[max_panel];
  Moments<S> sums_[max_panel];
  MomentRun<S> runs_[max_panel];  ///< what is not in the sums yet
};

template <class S>
bool is_fused(const Epilogue<S>& epilogue, Index channels) {
  return epilogue.bias || epilogue.mask || epilogue.addend || channels % (simd_width<S> / 2) != 0;
}

/// body(fused, moments) with the constants that PanelWriter wants for this epilogue.
template <class S, class Body>
void with_epilogue(const Epilogue<S>& epilogue, Index channels, Body body) {
  constexpr std::true_type yes;
  constexpr std::false_type no;
  if (is_fused(epilogue, channels))
    body(yes, yes);
  else
    epilogue.moments ? body(no, yes) : body(no, no);
}

}  // namespace deq::detail
