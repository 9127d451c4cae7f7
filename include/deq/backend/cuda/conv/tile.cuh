// SPDX-License-Identifier: MIT
// The one product that everything here is: a tile of C = A B by a block of threads, whatever A and
// B are gathered from. While the tensor cores work on one stage of the sum in shared memory, the
// numbers of the next are on their way to registers, where they are rounded before they are stored.
#pragma once

#include <deq/backend/cuda/conv/arithmetic.cuh>
#include <deq/backend/cuda/conv/plan.hpp>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/reduce.cuh>

namespace deq::cuda {

/// A tile of `rows` x `columns` sums, by 8 warps; a warp has 32 rows of it.
template <class A, int tile_rows, int tile_columns>
struct Tile {
  using Arithmetic = A;
  using S = typename A::Scalar;
  using Word = typename A::Word;
  static constexpr int rows = tile_rows, columns = tile_columns;
  static constexpr int stage = stage_words * A::numbers;  ///< numbers of the sum in one stage

  static constexpr int warps = threads / warp_threads;
  static constexpr int warps_down = rows / 32, warps_across = warps / warps_down;
  static constexpr int warp_columns = columns / warps_across;
  static_assert(rows % 32 == 0 && warps % warps_down == 0 && warp_columns % 16 == 0);
  static constexpr int down = 2, across = warp_columns / 8;  ///< 16 x 8 products of a warp

  // In shared memory the rows of A and the columns of B are lines along the sum, so long that the
  // threads of a warp meet in no bank.
  static constexpr int line = stage_words + 4, sum_line = columns + 8;
  static constexpr int a_size = rows * line, b_size = columns * line;
  static constexpr std::size_t stage_bytes = (a_size + b_size) * sizeof(Word);
  static constexpr std::size_t sum_bytes = rows * sum_line * sizeof(S);
  static constexpr std::size_t shared_bytes =
      2 * stage_bytes > sum_bytes ? 2 * stage_bytes : sum_bytes;

  static constexpr int a_quads = rows * stage_words / 4 / threads;
  static constexpr int b_quads = (columns * stage_words / 4 + threads - 1) / threads;

  /// Where warp, lane and thread are in the tile of sums.
  struct Place {
    int row, column, group, in_group;
    __device__ Place() {
      const int warp = static_cast<int>(threadIdx.x) / warp_threads,
                lane = static_cast<int>(threadIdx.x) % warp_threads;
      row = warp % warps_down * 32;
      column = warp / warps_down * warp_columns;
      group = lane / 4;
      in_group = lane % 4;
    }
  };

  S sum[down][across][4] = {};

  /// sum = A B over `stages` stages. Of the operands' stage that is at hand, load(q) reads quad q
  /// of this thread and put(quad, q, memory) stores its four words; next_stage() goes on.
  template <class SourceA, class SourceB>
  __device__ void multiply(SourceA& a, SourceB& b, int stages, Word* shared) {
    typename SourceA::Loaded next_a[a_quads];
    typename SourceB::Loaded next_b[b_quads];
    const auto load = [&] {
#pragma unroll
      for (int q = 0; q < a_quads; ++q) next_a[q] = a.load(q);
#pragma unroll
      for (int q = 0; q < b_quads; ++q) next_b[q] = b.load(q);
    };
    const auto put = [&](int s) {
      Word* const to = shared + (s % 2) * (a_size + b_size);
#pragma unroll
      for (int q = 0; q < a_quads; ++q) a.put(next_a[q], q, to);
#pragma unroll
      for (int q = 0; q < b_quads; ++q) b.put(next_b[q], q, to + a_size);
    };
    if (stages > 0) {
      load();
      put(0);
    }
    const RowPlaces rows_of_a([](int row) { return row * line; }, 4);
    for (int s = 0; s < stages; ++s) {
      __syncthreads();
      if (s + 1 < stages) {
        a.next_stage();
        b.next_stage();
        load();
      }
      const Word* const from = shared + (s % 2) * (a_size + b_size);
      add_stage<line, 4>(from, rows_of_a, from + a_size);
      if (s + 1 < stages) put(s + 1);
    }
    __syncthreads();  // shared memory may be used for something else
  }

  /// The rows of A that this thread reads: where they begin, and how far it is from one quad of
  /// words of each to the next.
  struct RowPlaces {
    static constexpr int count = A::tensor_cores ? down : 2 * down;
    int place[count], to_quad;

    /// place_of(row): in words. Eight neighbours need not be equally far apart.
    template <class PlaceOf>
    __device__ RowPlaces(PlaceOf&& place_of, int to_next_quad, int /*to_next_eight*/ = 0)
        : to_quad(to_next_quad) {
      const Place at;
#pragma unroll
      for (int i = 0; i < count; ++i)
        place[i] = place_of(A::tensor_cores ? at.row + 16 * i + static_cast<int>(threadIdx.x) % 16
                                            : at.row + 8 * i + at.group);
    }
  };
  /// sum += A B over stages whose rows of A begin one quad after the other, and whose B is packed:
  /// the columns of a quad of words are neighbours.
  template <int stages>
  __device__ void add_packed(const Word* a, const RowPlaces& of_a, const Word* b) {
#pragma unroll
    for (int s = 0; s < stages; ++s)
      add_stage<4, 4 * columns>(a + 4 * s, of_a, b + s * packed_size);
  }
  static constexpr int packed_size = columns * stage_words;
  // As those of WarpgroupTile, which is not done when add_packed returns.
  __device__ void wait() {}
  __device__ static void show_rows() {}

  /// sum += A B over one stage: column j of B at b + j to_column, its next quad of words to_quad
  /// after it.
  template <int to_column, int to_quad>
  __device__ void add_stage(const Word* a, const RowPlaces& of_a, const Word* b) {
    const Place at;
    if constexpr (A::tensor_cores) {
      const int lane = static_cast<int>(threadIdx.x) % warp_threads;
      // Which line of which square this thread names to load_squares.
      a += lane / 16 * of_a.to_quad;
      b += (at.column + lane % 8 + lane / 16 * 8) * to_column + lane / 8 % 2 * to_quad;
#pragma unroll
      for (int k = 0; k < stage_words; k += 8) {
        Word left[down][4], right[across / 2][4];
#pragma unroll
        for (int i = 0; i < down; ++i)
          load_squares(left[i], a + of_a.place[i] + k / 4 * of_a.to_quad);
#pragma unroll
        for (int j = 0; j < across / 2; ++j)
          load_squares(right[j], b + 16 * j * to_column + k / 4 * to_quad);
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
          for (int j = 0; j < across; ++j) {
            const Word* const column = right[j / 2] + j % 2 * 2;
            A::multiply(sum[i][j], left[i], column[0], column[1]);
          }
      }
    } else {
      b += (at.column + 2 * at.in_group) * to_column;
#pragma unroll 4
      for (int k = 0; k < stage_words; ++k) {
        S left[down][2], right[across][2];
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            left[i][r] = a[of_a.place[2 * i + r] + k / 4 * of_a.to_quad + k % 4];
#pragma unroll
        for (int j = 0; j < across; ++j)
#pragma unroll
          for (int r = 0; r < 2; ++r)
            right[j][r] = b[(8 * j + r) * to_column + k / 4 * to_quad + k % 4];
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
          for (int j = 0; j < across; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) sum[i][j][r] += left[i][r / 2] * right[j][r % 2];
      }
    }
  }

  /// body(row, column, sums) for strips of 16 rows: sums[j] are the numbers that this thread has of
  /// the eight columns from column + 8 j on (arithmetic.cuh).
  template <class Body>
  __device__ void for_each_strip(Body body) const {
    const Place at;
#pragma unroll
    for (int i = 0; i < down; ++i) body(at.row + 16 * i, at.column, sum[i]);
  }
  /// body(sums, i) for every four numbers of this thread.
  template <class Body>
  __device__ void for_each_four(Body body) {
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j) body(sum[i][j], i * across + j);
  }
  /// The sums, row by row, in shared memory.
  __device__ void spread(S* shared) const {
    const Place at;
#pragma unroll
    for (int i = 0; i < down; ++i)
#pragma unroll
      for (int j = 0; j < across; ++j)
#pragma unroll
        for (int k = 0; k < 4; k += 2) {
          const int row = at.row + 16 * i + at.group + 4 * k;
          const int column = at.column + 8 * j + 2 * at.in_group;
          store_pack(shared + row * sum_line + column, Pack<S, 2>{sum[i][j][k], sum[i][j][k + 1]});
        }
    __syncthreads();
  }
};

}  // namespace deq::cuda
