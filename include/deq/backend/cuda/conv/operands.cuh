// SPDX-License-Identifier: MIT
// What a tile multiplies: operands gathered from images, packed weights and matrices. Each hands
// its thread's quads of words of one stage to Tile::multiply.
#pragma once

#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/conv/tile.cuh>

namespace deq::cuda {

/// `width` neighbouring numbers, four in one access; zeros from nowhere.
template <int width, class S>
__device__ void load(const S* from, S* x) {
  if constexpr (width == 4) {
    const Quad<S> four = from ? *reinterpret_cast<const Quad<S>*>(from) : Quad<S>{};
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = four.word[i];
  } else {
    *x = from ? *from : S(0);
  }
}

/// Quads of A whose words are neighbours in a row: four threads have a line of a stage.
template <class T>
struct AlongRow {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
  struct Loaded {
    S x[4 * numbers];
  };
  __device__ static int row(int q) { return static_cast<int>(threadIdx.x) / 4 + q * (threads / 4); }
  /// Number of the stage that this thread's quads begin with.
  __device__ static int first() { return static_cast<int>(threadIdx.x) % 4 * 4 * numbers; }

  __device__ static void put(const Loaded& loaded, int q, Word* to) {
    Quad<Word> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      S x[numbers];
#pragma unroll
      for (int d = 0; d < numbers; ++d) x[d] = loaded.x[i * numbers + d];
      quad.word[i] = T::Arithmetic::word(x);
    }
    *reinterpret_cast<Quad<Word>*>(to + row(q) * T::a_line + first() / numbers) = quad;
  }
};

/// Quads whose words belong to four neighbouring rows of A or columns of B, at one place of the
/// sum.
template <class T, int extent, int line_a_row, int line_a_word>
struct AcrossSum {
  using Word = typename T::Word;
  using S = typename T::S;
  static constexpr int numbers = T::Arithmetic::numbers;
  struct Loaded {
    S x[numbers][4];
  };
  __device__ static int first() { return static_cast<int>(threadIdx.x) % (extent / 4) * 4; }
  __device__ static int word(int q) {
    return (static_cast<int>(threadIdx.x) + q * threads) / (extent / 4);
  }
  /// Small tiles have fewer quads than there are threads.
  __device__ static bool present(int q) { return word(q) < stage_words; }

  __device__ static void put(const Loaded& loaded, int q, Word* to) {
    if (!present(q)) return;
    to += word(q) * line_a_word + first() * line_a_row;
    Quad<Word> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      S x[numbers];
#pragma unroll
      for (int d = 0; d < numbers; ++d) x[d] = loaded.x[d][i];
      quad.word[i] = T::Arithmetic::word(x);
    }
    if constexpr (line_a_row == 1) {
      *reinterpret_cast<Quad<Word>*>(to) = quad;
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) to[i * line_a_row] = quad.word[i];
    }
  }
};
template <class T>
using RowsOfA = AcrossSum<T, T::rows, T::a_line, 1>;
template <class T>
using ColumnsOfB = AcrossSum<T, T::columns, 1, T::b_line>;

// --- Images ------------------------------------------------------------------------------------

/// Channel, line and column of the kernel that a place of the sum stands for.
struct Tap {
  int line, column, channel;
  bool there;
  __device__ Tap() : line(0), column(0), channel(0), there(false) {}
  __device__ Tap(const ImageMap& map, int k) : there(k < map.depth()) {
    const int tap = k / map.channels;
    channel = k - tap * map.channels;
    line = tap / map.kernel_width;
    column = tap - line * map.kernel_width;
  }
};

/// The numbers under a tap of the patch that begins at (line, column); null outside of the image.
template <class S>
__device__ const S* under(const Tap& tap, const ImageMap& map, const S* image, int line,
                          int column) {
  line = map.line(line, tap.line, map.height);
  column = map.line(column, tap.column, map.width);
  return tap.there && line >= 0 && column >= 0
             ? image + (line * map.width + column) * map.channels + tap.channel
             : nullptr;
}

/// A: the patches of the pixels of a tile. `width` is 4 if the channels come in fours.
template <class T, int width>
class Patches : public AlongRow<T> {
  using S = typename T::S;

 public:
  using typename AlongRow<T>::Loaded;

  __device__ Patches(const ImageMap& map, const Segments& segments, RowSet samples, const S* x,
                     Index first_row)
      : map_(map) {
#pragma unroll
    for (int q = 0; q < T::a_quads; ++q) {
      const Segments::Row row = segments.row(first_row + this->row(q));
      const bool there =
          row.sample < map.samples && row.pixel < map.out_pixels() && samples.contains(row.sample);
      image_[q] = there ? x + row.sample * map.pixels() * map.channels : nullptr;
      line_[q] = map.origin(row.pixel / map.out_width);
      column_[q] = map.origin(row.pixel % map.out_width);
    }
  }
  __device__ void begin(int stage) {
#pragma unroll
    for (int i = 0; i < taps; ++i)
      tap_[i] = Tap(map_, stage * T::stage + this->first() + i * width);
  }
  __device__ Loaded load(int q) const {
    Loaded loaded;
#pragma unroll
    for (int i = 0; i < taps; ++i) {
      const S* from = image_[q] ? under(tap_[i], map_, image_[q], line_[q], column_[q]) : nullptr;
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

/// A of the weight gradient: its rows are the taps, its sum runs over the pixels [first, last) of
/// all samples.
template <class T, int width>
class PatchesTransposed : public RowsOfA<T> {
  using S = typename T::S;

 public:
  using typename RowsOfA<T>::Loaded;

  __device__ PatchesTransposed(const ImageMap& map, const S* x, Index first_row, Index first,
                               Index last)
      : map_(map), x_(x), first_(first), last_(last) {
#pragma unroll
    for (int i = 0; i < taps; ++i)
      tap_[i] = Tap(map, static_cast<int>(first_row) + RowsOfA<T>::first() + i * width);
  }
  __device__ void begin(int stage) { begin_ = first_ + stage * T::stage; }
  __device__ Loaded load(int q) const {
    Loaded loaded;
#pragma unroll
    for (int d = 0; d < T::Arithmetic::numbers; ++d) {
      const Index at = begin_ + this->word(q) * T::Arithmetic::numbers + d;
      const Index sample = at / map_.out_pixels();
      const int pixel = static_cast<int>(at - sample * map_.out_pixels());
      const int line = map_.origin(pixel / map_.out_width),
                column = map_.origin(pixel % map_.out_width);
      const S* image = x_ + sample * map_.pixels() * map_.channels;
#pragma unroll
      for (int i = 0; i < taps; ++i) {
        const S* from = at < last_ ? under(tap_[i], map_, image, line, column) : nullptr;
        cuda::load<width>(from, loaded.x[d] + width * i);
      }
    }
    return loaded;
  }

 private:
  static constexpr int taps = 4 / width;
  const ImageMap& map_;
  const S* x_;
  Index first_, last_, begin_ = 0;
  Tap tap_[taps];
};

// --- Weights and matrices ----------------------------------------------------------------------

/// B: a weight that has been packed.
template <class T>
class Weights {
  using Word = typename T::Word;

 public:
  using Loaded = Quad<Word>;

  __device__ Weights(const Word* packed, Index line, Index first_column)
      : from_(packed + first_column + Columns::first()), line_(line) {}
  __device__ void begin(int stage) { begin_ = from_ + stage * stage_words * line_; }
  __device__ Loaded load(int q) const {
    return Columns::present(q) ? *reinterpret_cast<const Loaded*>(begin_ + Columns::word(q) * line_)
                               : Loaded{};
  }
  __device__ static void put(const Loaded& quad, int q, Word* to) {
    if (Columns::present(q))
      *reinterpret_cast<Loaded*>(to + Columns::word(q) * T::b_line + Columns::first()) = quad;
  }

 private:
  using Columns = ColumnsOfB<T>;
  const Word *from_, *begin_ = nullptr;
  Index line_;
};

/// An operand in memory; number i of term k of the sum is at data + i * step + k * sum_step.
template <class S>
struct MatrixView {
  const S* data;
  Index extent, step, sum_step;
};

/// A: rows of a matrix.
template <class T>
class MatrixRows : public AlongRow<T> {
  using S = typename T::S;

 public:
  using typename AlongRow<T>::Loaded;

  __device__ MatrixRows(const MatrixView<S>& a, Index first_row, Index last)
      : a_(a), first_row_(first_row), last_(last) {}
  __device__ void begin(int stage) { begin_ = Index{stage} * T::stage + this->first(); }
  __device__ Loaded load(int q) const {
    const Index i = first_row_ + this->row(q);
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
  Index first_row_, last_, begin_ = 0;
};

/// B: columns of a matrix, the terms [first, last) of the sum. `width` is 4 if they come in fours.
template <class T, int width>
class MatrixColumns : public ColumnsOfB<T> {
  using S = typename T::S;

 public:
  using typename ColumnsOfB<T>::Loaded;

  __device__ MatrixColumns(const MatrixView<S>& b, Index first_column, Index first, Index last)
      : b_(b), first_column_(first_column + ColumnsOfB<T>::first()), first_(first), last_(last) {}
  __device__ void begin(int stage) { begin_ = first_ + Index{stage} * T::stage; }
  __device__ Loaded load(int q) const {
    Loaded loaded;
#pragma unroll
    for (int d = 0; d < T::Arithmetic::numbers; ++d) {
      const Index k = begin_ + this->word(q) * T::Arithmetic::numbers + d;
      const bool there = this->present(q) && k < last_;
#pragma unroll
      for (int i = 0; i < 4; i += width) {
        const Index j = first_column_ + i;
        const S* from = there && j < b_.extent ? b_.data + j * b_.step + k * b_.sum_step : nullptr;
        cuda::load<width>(from, loaded.x[d] + i);
      }
    }
    return loaded;
  }

 private:
  const MatrixView<S>& b_;
  Index first_column_, first_, last_, begin_ = 0;
};

}  // namespace deq::cuda
