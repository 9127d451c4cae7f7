// SPDX-License-Identifier: MIT
// What a tile multiplies: operands gathered from images, packed weights and matrices. Each hands
// its thread's quads of words of one stage to Tile::multiply.
#pragma once

#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/conv/tile.cuh>

namespace deq::cuda {

/// `width` neighbouring numbers, four in one access; zeros where there are none.
template <int width, class S>
__device__ void load(bool there, const S* from, S* x) {
  if constexpr (width == 4) {
    const Quad<S> four = there ? *reinterpret_cast<const Quad<S>*>(from) : Quad<S>{};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = four.word[i];
  } else {
    *x = there ? *from : S(0);
  }
}
/// From nowhere, zeros.
template <int width, class S>
__device__ void load(const S* from, S* x) {
  load<width>(from != nullptr, from, x);
}

/// Quads whose words are neighbours along the sum, of `lines` lines of A or B. Eight threads that
/// store together have eight lines, which are in different banks.
template <class T, int lines>
struct AlongSum {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
  struct Loaded {
    S x[4 * numbers];
  };
  __device__ static int line(int q) {
    const int thread = static_cast<int>(threadIdx.x);
    return thread / warp_threads * 8 + thread % 8 + q * (threads / 4);
  }
  /// Small tiles have fewer quads than there are threads.
  __device__ static bool present(int q) { return lines % (threads / 4) == 0 || line(q) < lines; }
  /// Number of the stage that this thread's quads begin with.
  __device__ static int first() {
    return static_cast<int>(threadIdx.x) % warp_threads / 8 * 4 * numbers;
  }
  __device__ static Word* place(int q, Word* memory) {
    return memory + line(q) * T::line + first() / numbers;
  }

  __device__ static void put(const Loaded& loaded, int q, Word* to) {
    Quad<Word> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      S x[numbers];
#pragma unroll
      for (int d = 0; d < numbers; ++d) x[d] = loaded.x[i * numbers + d];
      quad.word[i] = T::Arithmetic::word(x);
    }
    if (present(q)) *reinterpret_cast<Quad<Word>*>(place(q, to)) = quad;
  }
};

/// Quads whose words belong to four neighbouring lines, at one place of the sum. Sixteen threads
/// have the words of a line, so that none of those that store together meets another in a bank.
template <class T, int lines>
struct AcrossSum {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
  struct Loaded {
    S x[numbers][4];
  };
  __device__ static int word() { return static_cast<int>(threadIdx.x) % stage_words; }
  /// The first of the four lines.
  __device__ static int first(int q) {
    return (static_cast<int>(threadIdx.x) / stage_words + q * (threads / stage_words)) * 4;
  }
  __device__ static bool present(int q) {
    return lines * stage_words / 4 % threads == 0 || first(q) < lines;
  }

  __device__ static void put(const Loaded& loaded, int q, Word* to) {
    if (!present(q)) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      S x[numbers];
#pragma unroll
      for (int d = 0; d < numbers; ++d) x[d] = loaded.x[d][i];
      to[(first(q) + i) * T::line + word()] = T::Arithmetic::word(x);
    }
  }
};

// --- Images ------------------------------------------------------------------------------------

/// Channel, line and column of the kernel that a place of the sum stands for.
class Tap {
 public:
  __device__ Tap() {}
  __device__ Tap(const ImageMap& map, int k) {
    const int tap = k / map.channels;
    channel_ = k - tap * map.channels;
    line_ = map.x.taps > 0 ? tap / map.x.taps : 0;
    column_ = tap - line_ * map.x.taps;
  }
  /// So many places on.
  __device__ void advance(const ImageMap& map, int places) {
    channel_ += places;
    while (channel_ >= map.channels) {
      channel_ -= map.channels;
      if (++column_ == map.x.taps) {
        column_ = 0;
        ++line_;
      }
    }
  }
  /// The numbers under the tap in a patch that begins at (line, column); null if there are none.
  template <class S>
  __device__ const S* in(const ImageMap& map, const S* image, int line, int column) const {
    line += line_;
    column += column_;
    const bool there = line_ < map.y.taps && map.y.inside(line) && map.x.inside(column);
    return there ? image + (line * map.x.in + column) * map.channels + channel_ : nullptr;
  }

 private:
  int line_ = 0, column_ = 0, channel_ = 0;
};

/// A: the patches of the pixels of a tile. `width` is 4 if the channels come in fours.
template <class T, int width>
class Patches : public AlongSum<T, T::rows> {
  using S = typename T::S;

 public:
  using typename AlongSum<T, T::rows>::Loaded;

  __device__ Patches(const ImageMap& map, const Segments& segments, RowSet samples, const S* x,
                     Index first_row)
      : map_(map) {
#pragma unroll
    for (int q = 0; q < T::a_quads; ++q) {
      const Segments::Row row = segments.row(first_row + this->line(q));
      const bool there =
          row.sample < map.samples && row.pixel < map.pixels() && samples.contains(row.sample);
      image_[q] = there ? x + row.sample * map.in_pixels() * map.channels : nullptr;
      line_[q] = map.y.origin(row.pixel / map.x.out);
      column_[q] = map.x.origin(row.pixel % map.x.out);
    }
#pragma unroll
    for (int i = 0; i < taps; ++i) tap_[i] = Tap(map, this->first() + i * width);
  }
  /// The stages come in order, each once.
  __device__ void next_stage() {
#pragma unroll
    for (int i = 0; i < taps; ++i) tap_[i].advance(map_, T::stage);
  }
  __device__ Loaded load(int q) const {
    Loaded loaded;
#pragma unroll
    for (int i = 0; i < taps; ++i) {
      const S* from = image_[q] ? tap_[i].in(map_, image_[q], line_[q], column_[q]) : nullptr;
      cuda::load<width>(from, loaded.x + width * i);
    }
    return loaded;
  }

 private:
  static constexpr int taps = 4 * T::Arithmetic::numbers / width;
  const ImageMap& map_;
  const S* image_[T::a_quads];
  int line_[T::a_quads], column_[T::a_quads];
  Tap tap_[taps];
};

/// A pixel of a batch of images, in the order of memory.
class PixelCounter {
 public:
  __device__ PixelCounter(const ImageMap& map, Index at)
      : sample_(at / map.pixels()),
        line_(static_cast<int>(at % map.pixels()) / map.x.out),
        column_(static_cast<int>(at % map.pixels()) % map.x.out) {}
  /// So many pixels on.
  __device__ void advance(const ImageMap& map, int pixels) {
    column_ += pixels;
    while (column_ >= map.x.out) {
      column_ -= map.x.out;
      if (++line_ == map.y.out) {
        line_ = 0;
        ++sample_;
      }
    }
  }
  /// What the tap reads for this output pixel; null if there is nothing.
  template <class S>
  __device__ const S* under(const Tap& tap, const ImageMap& map, const S* x) const {
    return tap.in(map, x + sample_ * map.in_pixels() * map.channels, map.y.origin(line_),
                  map.x.origin(column_));
  }

 private:
  Index sample_;
  int line_, column_;
};

/// A of the weight gradient: its rows are the taps, its sum runs over the pixels [first, last) of
/// all samples.
template <class T, int width>
class PatchesTransposed : public AcrossSum<T, T::rows> {
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;

 public:
  using typename AcrossSum<T, T::rows>::Loaded;

  __device__ PatchesTransposed(const ImageMap& map, const S* x, Index first_row, Index first,
                               Index last)
      : map_(map), x_(x), at_(first + this->word() * numbers), last_(last), pixel_(map, at_) {
#pragma unroll
    for (int q = 0; q < T::a_quads; ++q)
#pragma unroll
      for (int i = 0; i < taps; ++i)
        tap_[q][i] = Tap(map, static_cast<int>(first_row) + this->first(q) + i * width);
  }
  __device__ void next_stage() {
    at_ += T::stage;
    pixel_.advance(map_, T::stage);
  }
  __device__ Loaded load(int q) const {
    Loaded loaded;
    PixelCounter pixel = pixel_;
#pragma unroll
    for (int d = 0; d < numbers; ++d) {
#pragma unroll
      for (int i = 0; i < taps; ++i) {
        const S* from = at_ + d < last_ ? pixel.under(tap_[q][i], map_, x_) : nullptr;
        cuda::load<width>(from, loaded.x[d] + width * i);
      }
      pixel.advance(map_, 1);
    }
    return loaded;
  }

 private:
  static constexpr int taps = 4 / width;
  const ImageMap& map_;
  const S* x_;
  Index at_, last_;
  PixelCounter pixel_;  ///< number at_
  Tap tap_[T::a_quads][taps];
};

// --- Weights and matrices
// -------------------------------------------------------------------------

/// B: a weight that has been packed, whose columns are `line` words long.
template <class T>
class Weights : public AlongSum<T, T::columns> {
  using Word = typename T::Word;

 public:
  using Loaded = Quad<Word>;

  __device__ Weights(const Word* packed, Index line, Index first_column)
      : from_(packed + first_column * line + this->first() / T::Arithmetic::numbers), line_(line) {}
  __device__ void next_stage() { from_ += stage_words; }
  __device__ Loaded load(int q) const {
    return this->present(q) ? *reinterpret_cast<const Loaded*>(from_ + this->line(q) * line_)
                            : Loaded{};
  }
  __device__ static void put(const Loaded& quad, int q, Word* to) {
    if (Weights::present(q)) *reinterpret_cast<Loaded*>(Weights::place(q, to)) = quad;
  }

 private:
  const Word* from_;
  Index line_;
};

/// An operand in memory; number i of term k of the sum is at data + i * step + k * sum_step.
template <class S>
struct MatrixView {
  const S* data;
  Index extent, step, sum_step;
};

/// A: rows of a matrix, the terms [0, last) of the sum.
template <class T>
class MatrixRows : public AlongSum<T, T::rows> {
  using S = typename T::S;

 public:
  using typename AlongSum<T, T::rows>::Loaded;

  __device__ MatrixRows(const MatrixView<S>& a, Index first_row, Index last)
      : a_(a), first_row_(first_row), begin_(this->first()), last_(last) {}
  __device__ void next_stage() { begin_ += T::stage; }
  __device__ Loaded load(int q) const {
    const Index i = first_row_ + this->line(q);
    Loaded loaded;
#pragma unroll
    for (int d = 0; d < 4 * T::Arithmetic::numbers; ++d) {
      const Index k = begin_ + d;
      const bool there = i < a_.extent && k < last_;
      loaded.x[d] = there ? a_.data[i * a_.step + k * a_.sum_step] : S(0);
    }
    return loaded;
  }

 private:
  const MatrixView<S>& a_;
  Index first_row_, begin_, last_;
};

/// B: columns of a matrix, the terms [first, last) of the sum. `width` is 4 if they come in fours.
template <class T, int width>
class MatrixColumns : public AcrossSum<T, T::columns> {
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;

 public:
  using typename AcrossSum<T, T::columns>::Loaded;

  __device__ MatrixColumns(const MatrixView<S>& b, Index first_column, Index first, Index last)
      : b_(b), first_column_(first_column), at_(first + this->word() * numbers), last_(last) {}
  __device__ void next_stage() { at_ += T::stage; }
  __device__ Loaded load(int q) const {
    Loaded loaded;
#pragma unroll
    for (int d = 0; d < numbers; ++d) {
      const bool there = this->present(q) && at_ + d < last_;
#pragma unroll
      for (int i = 0; i < 4; i += width) {
        const Index j = first_column_ + this->first(q) + i;
        const S* from =
            there && j < b_.extent ? b_.data + j * b_.step + (at_ + d) * b_.sum_step : nullptr;
        cuda::load<width>(from, loaded.x[d] + i);
      }
    }
    return loaded;
  }

 private:
  const MatrixView<S>& b_;
  Index first_column_, at_, last_;
};

}  // namespace deq::cuda
