// SPDX-License-Identifier: MIT
// Products by wgmma, of groups of four warps: A comes from registers, B from where it lies in
// shared memory, and the tensor cores run at the full rate of Hopper (sm_90a). In words the layout
// of both is the same for all precisions: of A as for mma.sync (arithmetic.cuh), of B quads of
// words along the sum, eight columns of a quad together (PTX ISA, "wgmma", K-major without
// swizzling).
#pragma once

#include <cstdint>
#include <type_traits>

#include <deq/backend/cuda/conv/tile.cuh>

namespace deq::cuda {

// Elsewhere, and on the host's side of a compilation, Tile multiplies by itself.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#ifdef __CUDACC__

/// The packed weight of a tile T from some place on, as wgmma wants to be told: where it is, and
/// how far it is from one quad of words of the sum to the next and from eight columns to the next.
template <class T>
class MatrixInShared {
  static constexpr int access = sizeof(Quad<unsigned>), to_next_quad = T::columns * access,
                       to_eight_columns = 8 * access;

 public:
  __device__ explicit MatrixInShared(SharedPlace from)
      : place_((from & 0x3ffff) / access | to_next_quad / access << 16) {}
  /// So many words on.
  __device__ MatrixInShared operator+(int words) const {
    MatrixInShared on = *this;
    on.place_ += static_cast<unsigned>(words) / 4;
    return on;
  }
  __device__ std::uint64_t descriptor() const {
    return std::uint64_t{to_eight_columns / access} << 32 | place_;
  }

 private:
  unsigned place_;
};

// The operands of wgmma are the same for all precisions.
#define DEQ_MULTIPLY_32(shape, flags)                                                             \
  asm volatile(                                                                                   \
      "{.reg .pred add;\n"                                                                        \
      "setp.ne.b32 add, %21, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n32" shape                                                 \
      " {"                                                                                        \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"                                     \
      "}, {%16,%17,%18,%19}, %20, add, " flags ";}\n"                                             \
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), \
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))
#define DEQ_MULTIPLY_64(shape, flags)                                                             \
  asm volatile(                                                                                   \
      "{.reg .pred add;\n"                                                                        \
      "setp.ne.b32 add, %37, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n64" shape                                                 \
      " {"                                                                                        \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                    \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"                           \
      "}, {%32,%33,%34,%35}, %36, add, " flags ";}\n"                                             \
      : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), \
        "+f"(d[1][2]), "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), \
        "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]), "+f"(d[4][0]), "+f"(d[4][1]), \
        "+f"(d[4][2]), "+f"(d[4][3]), "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]), \
        "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]), "+f"(d[7][0]), "+f"(d[7][1]), \
        "+f"(d[7][2]), "+f"(d[7][3])                                                              \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1))

/// d += a b, 64 rows of a group of warps by `columns`; runs behind until wait_for_products.
template <class Precision, int columns, class T>
__device__ void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4],
                                const MatrixInShared<T>& from) {
  const std::uint64_t b = from.descriptor();
  static_assert(columns == 32 || columns == 64);
  constexpr bool bf16 = std::is_same_v<Precision, Bf16>;
  if constexpr (columns == 32 && bf16)
    DEQ_MULTIPLY_32("k16.f32.bf16.bf16", "1, 1, 0");
  else if constexpr (columns == 32)
    DEQ_MULTIPLY_32("k8.f32.tf32.tf32", "1, 1");
  else if constexpr (bf16)
    DEQ_MULTIPLY_64("k16.f32.bf16.bf16", "1, 1, 0");
  else
    DEQ_MULTIPLY_64("k8.f32.tf32.tf32", "1, 1");
}
#undef DEQ_MULTIPLY_32
#undef DEQ_MULTIPLY_64

/// What was written to registers is there for the products.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Those since the last call are a group.
__device__ inline void close_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// All groups but the last `left` are done.
template <int left>
__device__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}
/// Keeps the compiler from moving a register across.
__device__ inline void pin(float& x) { asm volatile("" : "+f"(x)::"memory"); }

#else

template <class T>
class MatrixInShared {
 public:
  explicit MatrixInShared(SharedPlace from) : from_(reinterpret_cast<const unsigned*>(from)) {}
  MatrixInShared operator+(int words) const {
    MatrixInShared on = *this;
    on.from_ += words;
    return on;
  }
  unsigned word(int quad, int column, int i) const {
    return from_[(quad * T::columns + column) * 4 + i];
  }

 private:
  const unsigned* from_;
};
template <class Precision, int columns, class T>
void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4],
                     const MatrixInShared<T>& b) {
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  for (int j = 0; j < columns / 8; ++j) {
    const int column = 8 * j + lane / 4;
    Arithmetic<float, Precision>::multiply(d[j], a, b.word(0, column, lane % 4),
                                           b.word(1, column, lane % 4));
  }
}
inline void begin_products() {}
inline void close_products() {}
template <int left>
void wait_for_products() {}
inline void pin(float&) {}

#endif

/// The tile T of sums, by two groups of four warps, each of 64 rows and some of the columns.
template <class T, class Precision>
class WarpgroupTile {
  using S = typename T::S;
  using Word = typename T::Word;
  static constexpr int groups_down = T::rows / 64, columns = T::columns * groups_down / 2;

 public:
  // As those of Tile.
  static constexpr int a_rows = 1;
  __device__ static int row_of(int) { return first_row() + static_cast<int>(threadIdx.x) % 16; }

  template <int stages>
  __device__ void add_packed(const Word* a, const int (&row)[a_rows], MatrixInShared<T> b) {
    a += row[0] + static_cast<int>(threadIdx.x) % warp_threads / 16 * 4;
    if (groups_down == 1) b = b + first_column() * 4;
    constexpr int halves = stage_words / 8;
    Word of_a[2][halves][4];
    pin_sums();
#pragma unroll
    for (int s = 0; s < stages; ++s) {
      // While the tensor cores have the stage before.
      if (s >= 2) wait_for_products<1>();
#pragma unroll
      for (int k = 0; k < halves; ++k) load_squares(of_a[s % 2][k], a + s * T::line + 8 * k);
      begin_products();
#pragma unroll
      for (int k = 0; k < halves; ++k)
        multiply_behind<Precision, columns>(sum_, of_a[s % 2][k],
                                            b + (s * stage_words + 8 * k) * T::columns);
      close_products();
    }
    wait_for_products<0>();
    pin_sums();
  }

  template <class Body>
  __device__ void for_each_strip(Body body) const {
    body(first_row(), first_column(), sum_);
  }

 private:
  __device__ static int group() { return static_cast<int>(threadIdx.x) / (4 * warp_threads); }
  __device__ static int first_row() {
    const int warp = static_cast<int>(threadIdx.x) / warp_threads;
    return group() % groups_down * 64 + warp % 4 * 16;
  }
  __device__ static int first_column() { return group() / groups_down * columns; }
  __device__ void pin_sums() {
#pragma unroll
    for (int j = 0; j < columns / 8; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) pin(sum_[j][k]);
  }

  S sum_[columns / 8][4] = {};
};

/// Who multiplies in a tile T.
template <class T>
using TileProduct = std::conditional_t<T::Arithmetic::tensor_cores,
                                       WarpgroupTile<T, typename T::Arithmetic::Precision>, T>;
#else
template <class T>
using TileProduct = T;
#endif

}  // namespace deq::cuda
