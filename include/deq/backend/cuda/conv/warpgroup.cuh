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

/// Of eight words of the sum by so many columns, as wgmma wants to be told: where they are, and how
/// far it is from one quad of the sum to the next and from eight columns to the next.
__device__ inline std::uint64_t matrix_in_shared(const unsigned* from, int to_next_quad) {
  const auto bytes16 = [](unsigned bytes) { return std::uint64_t{(bytes & 0x3ffff) >> 4}; };
  constexpr unsigned eight_columns = 8 * sizeof(Quad<unsigned>);
  return bytes16(in_shared(from)) | bytes16(static_cast<unsigned>(to_next_quad) * 4u) << 16 |
         bytes16(eight_columns) << 32;
}

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
template <class Precision, int columns>
__device__ void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4],
                                std::uint64_t b) {
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

struct MatrixInShared {
  const unsigned* from;
  int to_next_quad;
};
inline MatrixInShared matrix_in_shared(const unsigned* from, int to_next_quad) {
  return {from, to_next_quad};
}
template <class Precision, int columns>
void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4], MatrixInShared b) {
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  for (int j = 0; j < columns / 8; ++j) {
    const unsigned* const word = b.from + (8 * j + lane / 4) * 4 + lane % 4;
    Arithmetic<float, Precision>::multiply(d[j], a, word[0], word[b.to_next_quad]);
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
  __device__ void add_packed(const Word* a, const int (&row)[a_rows], const Word* b) {
    a += row[0] + static_cast<int>(threadIdx.x) % warp_threads / 16 * 4;
    b += first_column() * 4;
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
        multiply_behind<Precision, columns>(
            sum_, of_a[s % 2][k],
            matrix_in_shared(b + s * T::packed_size + 2 * k * to_next_quad, to_next_quad));
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
  static constexpr int to_next_quad = T::columns * 4;

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
