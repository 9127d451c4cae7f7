// SPDX-License-Identifier: MIT
// What a tile multiplies: operands gathered from images, packed weights and matrices. Each hands
// its thread's quads of words of one stage to Tile::multiply.
#pragma once

#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/conv/tile.cuh>

namespace deq::cuda {

/// `width` neighbouring numbers, zeros where there are none.
template <int width, class X>
__device__ Pack<X, width> load_if(bool there, const X* from) {
  return there ? load_pack<width>(from) : Pack<X, width>{};
}
/// From nowhere, zeros.
template <int width, class X>
__device__ Pack<X, width> load_if(const X* from) {
  return load_if<width>(from != nullptr, from);
}

/// n neighbouring numbers as they came from memory, `width` by one access each.
template <class X, int n, int width>
struct Numbers {
  Pack<X, width> pack[n / width];

  /// Word i of them, as precision A multiplies it.
  template <class A>
  __device__ typename A::Word word(int i) const {
    static_assert(n % width == 0);
    if constexpr (width % A::numbers == 0 && std::is_same_v<X, Bfloat16>) {
      static_assert(A::numbers == 2);
      return pack[2 * i / width].pair[i % (width / 2)];
    } else {
      typename A::Scalar x[A::numbers];
#pragma unroll
      for (int d = 0; d < A::numbers; ++d) {
        const int number = A::numbers * i + d;
        x[d] = pack[number / width].word[number % width];
      }
      return A::word(x);
    }
  }
};

/// Quads whose words are neighbours along the sum, of `lines` lines of A or B. Eight threads that
/// store together have eight lines, which are in different banks.
template <class T, int lines>
struct AlongSum {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
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

  template <class X, int width>
  __device__ static Quad<Word> words(const Numbers<X, 4 * numbers, width>& loaded) {
    Quad<Word> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) quad.word[i] = loaded.template word<typename T::Arithmetic>(i);
    return quad;
  }
  template <class X, int width>
  __device__ static void put(const Numbers<X, 4 * numbers, width>& loaded, int q, Word* to) {
    if (present(q)) *reinterpret_cast<Quad<Word>*>(place(q, to)) = words(loaded);
  }
};

/// Quads whose words belong to four neighbouring lines, at one place of the sum. Sixteen threads
/// have the words of a line, so that none of those that store together meets another in a bank.
template <class T, int lines>
struct AcrossSum {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
  /// Of every line, the numbers of a word.
  template <class X, int width>
  struct Loaded {
    Pack<X, width> pack[numbers][4 / width];
  };
  __device__ static int word() { return static_cast<int>(threadIdx.x) % stage_words; }
  /// The first of the four lines.
  __device__ static int first(int q) {
    return (static_cast<int>(threadIdx.x) / stage_words + q * (threads / stage_words)) * 4;
  }
  __device__ static bool present(int q) {
    return lines * stage_words / 4 % threads == 0 || first(q) < lines;
  }

  template <class X, int width>
  __device__ static void put(const Loaded<X, width>& loaded, int q, Word* to) {
    if (!present(q)) return;
    S x[4][numbers];
#pragma unroll
    for (int d = 0; d < numbers; ++d)
#pragma unroll
      for (int i = 0; i < 4; i += width) {
        const Pack<S, width> some = as<S>(loaded.pack[d][i / width]);
#pragma unroll
        for (int k = 0; k < width; ++k) x[i + k][d] = some.word[k];
      }
#pragma unroll
    for (int i = 0; i < 4; ++i) to[(first(q) + i) * T::line + word()] = T::Arithmetic::word(x[i]);
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
  template <class X>
  __device__ const X* in(const ImageMap& map, const X* image, int line, int column) const {
    line += line_;
    column += column_;
    const bool there = line_ < map.y.taps && map.y.inside(line) && map.x.inside(column);
    return there ? image + (line * map.x.in + column) * map.channels + channel_ : nullptr;
  }

 private:
  int line_ = 0, column_ = 0, channel_ = 0;
};

/// A: the patches of the pixels of a tile. The channels come in packs of `width`.
template <class T, class X, int width>
class Patches : public AlongSum<T, T::rows> {
 public:
  using Loaded = Numbers<X, 4 * T::Arithmetic::numbers, width>;

  __device__ Patches(const ImageMap& map, const Segments& segments, RowSet samples, const X* x,
                     Index first_row)
      : map_(map) {
#pragma unroll
    for (int q = 0; q < T::a_quads; ++q) {
      const Segments::Row row = segments.row(first_row + this->line(q));
      const bool there = exists(map, row) && samples.contains(row.sample);
      image_[q] = there ? x + row.sample * map.in_pixels() * map.channels : nullptr;
      const ImageMap::Pixel pixel = map.pixel(row.pixel);
      line_[q] = map.y.origin(pixel.line);
      column_[q] = map.x.origin(pixel.column);
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
      const X* from = image_[q] ? tap_[i].in(map_, image_[q], line_[q], column_[q]) : nullptr;
      loaded.pack[i] = load_if<width>(from);
    }
    return loaded;
  }

 private:
  static constexpr int taps = 4 * T::Arithmetic::numbers / width;
  const ImageMap& map_;
  const X* image_[T::a_quads];
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
  template <class X>
  __device__ const X* under(const Tap& tap, const ImageMap& map, const X* x) const {
    return tap.in(map, x + sample_ * map.in_pixels() * map.channels, map.y.origin(line_),
                  map.x.origin(column_));
  }

 private:
  Index sample_;
  int line_, column_;
};

/// A of the weight gradient: its rows are the taps, its sum runs over the pixels [first, last) of
/// all samples.
template <class T, class X, int width>
class PatchesTransposed : public AcrossSum<T, T::rows> {
  static constexpr int numbers = T::Arithmetic::numbers;

 public:
  using Loaded = typename AcrossSum<T, T::rows>::template Loaded<X, width>;

  __device__ PatchesTransposed(const ImageMap& map, const X* x, Index first_row, Index first,
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
        const X* from = at_ + d < last_ ? pixel.under(tap_[q][i], map_, x_) : nullptr;
        loaded.pack[d][i] = load_if<width>(from);
      }
      pixel.advance(map_, 1);
    }
    return loaded;
  }

 private:
  static constexpr int taps = 4 / width;
  const ImageMap& map_;
  const X* x_;
  Index at_, last_;
  PixelCounter pixel_;  ///< number at_
  Tap tap_[T::a_quads][taps];
};

// --- Weights and matrices ----------------------------------------------------------------------

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
template <class X>
struct MatrixView {
  const X* data;
  Index extent, step, sum_step;
};

/// A: rows of a matrix, the terms [first, last) of the sum.
template <class T>
class MatrixRows : public AlongSum<T, T::rows> {
  using S = typename T::S;

 public:
  using Loaded = Numbers<S, 4 * T::Arithmetic::numbers, 1>;

  __device__ MatrixRows(const MatrixView<S>& a, Index first_row, Index first, Index last)
      : a_(a), first_row_(first_row), begin_(first + this->first()), last_(last) {}
  __device__ void next_stage() { begin_ += T::stage; }
  __device__ Loaded load(int q) const {
    const Index i = first_row_ + this->line(q);
    Loaded loaded;
#pragma unroll
    for (int d = 0; d < 4 * T::Arithmetic::numbers; ++d) {
      const Index k = begin_ + d;
      const bool there = i < a_.extent && k < last_;
      loaded.pack[d] = load_if<1>(there, a_.data + i * a_.step + k * a_.sum_step);
    }
    return loaded;
  }

 private:
  const MatrixView<S>& a_;
  Index first_row_, begin_, last_;
};

/// B: columns of a matrix, the terms [first, last) of the sum. `width` is 4 if they come in fours.
template <class T, class X, int width>
class MatrixColumns : public AcrossSum<T, T::columns> {
  static constexpr int numbers = T::Arithmetic::numbers;

 public:
  using Loaded = typename AcrossSum<T, T::columns>::template Loaded<X, width>;

  __device__ MatrixColumns(const MatrixView<X>& b, Index first_column, Index first, Index last)
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
        const X* from =
            there && j < b_.extent ? b_.data + j * b_.step + (at_ + d) * b_.sum_step : nullptr;
        loaded.pack[d][i / width] = load_if<width>(from);
      }
    }
    return loaded;
  }

 private:
  const MatrixView<X>& b_;
  Index first_column_, at_, last_;
};

}  // namespace deq::cuda
