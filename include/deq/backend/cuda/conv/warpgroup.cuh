// SPDX-License-Identifier: MIT
// Products by wgmma, of groups of four warps: B comes from where it lies in shared memory, A from
// there too, or from registers, and the tensor cores run at the full rate of Hopper (sm_90a). In
// words the layout is the same for all precisions: in registers as for mma.sync (arithmetic.cuh),
// in shared memory quads of words along the sum, eight rows of A or columns of B together (PTX ISA,
// "wgmma", K-major without swizzling).
#pragma once

#include <cstdint>
#include <type_traits>

#include <deq/backend/cuda/conv/tile.cuh>

namespace deq::cuda {

// Elsewhere, and on the host's side of a compilation, Tile multiplies by itself.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#ifdef __CUDACC__

/// Lines along the sum, rows of A or columns of B, as wgmma wants to be told: where they are, and
/// how many quads of words it is from one quad of the sum to the next and from eight lines to the
/// next.
class LinesInShared {
 public:
  __device__ LinesInShared(SharedPlace from, int to_next_quad, int to_next_eight)
      : place_((from & 0x3ffff) / sizeof(Quad<unsigned>) | static_cast<unsigned>(to_next_quad)
                                                               << 16),
        to_next_eight_(static_cast<unsigned>(to_next_eight)) {}
  /// So many quads on.
  __device__ LinesInShared operator+(int quads) const {
    LinesInShared on = *this;
    on.place_ += static_cast<unsigned>(quads);
    return on;
  }
  __device__ std::uint64_t descriptor() const {
    return std::uint64_t{to_next_eight_} << 32 | place_;
  }

 private:
  unsigned place_, to_next_eight_;
};

// The operands of wgmma are the same for all precisions: the sums, A, B, and whether to add. Of
// `columns` sums a thread has half as many numbers.
#define DEQ_SUMS_OF_EIGHT(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define DEQ_SUMS_OF_32(j) \
  DEQ_SUMS_OF_EIGHT(j), DEQ_SUMS_OF_EIGHT(j + 1), DEQ_SUMS_OF_EIGHT(j + 2), DEQ_SUMS_OF_EIGHT(j + 3)
#define DEQ_SUMS_32 DEQ_SUMS_OF_32(0)
#define DEQ_SUMS_64 DEQ_SUMS_32, DEQ_SUMS_OF_32(4)
#define DEQ_SUMS_160 DEQ_SUMS_64, DEQ_SUMS_OF_32(8), DEQ_SUMS_OF_32(12), DEQ_SUMS_OF_32(16)
#define DEQ_OPERANDS_32 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define DEQ_OPERANDS_64 \
  DEQ_OPERANDS_32 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define DEQ_OPERANDS_160                                             \
  DEQ_OPERANDS_64                                                    \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
  ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63" \
  ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define DEQ_MULTIPLY(columns, shape, a_and_b, add, flags, ...)                       \
  asm volatile(                                                                      \
      "{.reg .pred add;\n"                                                           \
      "setp.ne.b32 add, " add                                                        \
      ", 0;\n"                                                                       \
      "wgmma.mma_async.sync.aligned.m64n" #columns shape " {" DEQ_OPERANDS_##columns \
      "}, " a_and_b ", add, " flags ";}\n"                                           \
      : DEQ_SUMS_##columns                                                           \
      : __VA_ARGS__, "l"(b.descriptor()), "r"(1))

/// d += a b, 64 rows of a group of warps by `columns`; runs behind until wait_for_products.
template <class Precision, int columns>
__device__ void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4],
                                const LinesInShared& b) {
  constexpr bool bf16 = std::is_same_v<Precision, Bf16>;
  static_assert(columns == 32 || columns == 64 || (columns == 160 && bf16));
#define DEQ_A "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3])
  if constexpr (columns == 160)
    DEQ_MULTIPLY(160, "k16.f32.bf16.bf16", "{%80,%81,%82,%83}, %84", "%85", "1, 1, 0", DEQ_A);
  else if constexpr (columns == 32 && bf16)
    DEQ_MULTIPLY(32, "k16.f32.bf16.bf16", "{%16,%17,%18,%19}, %20", "%21", "1, 1, 0", DEQ_A);
  else if constexpr (columns == 32)
    DEQ_MULTIPLY(32, "k8.f32.tf32.tf32", "{%16,%17,%18,%19}, %20", "%21", "1, 1", DEQ_A);
  else if constexpr (bf16)
    DEQ_MULTIPLY(64, "k16.f32.bf16.bf16", "{%32,%33,%34,%35}, %36", "%37", "1, 1, 0", DEQ_A);
  else
    DEQ_MULTIPLY(64, "k8.f32.tf32.tf32", "{%32,%33,%34,%35}, %36", "%37", "1, 1", DEQ_A);
#undef DEQ_A
}
/// The same of rows of A that lie in shared memory.
template <class Precision, int columns>
__device__ void multiply_behind(float (&d)[columns / 8][4], const LinesInShared& a,
                                const LinesInShared& b) {
  constexpr bool bf16 = std::is_same_v<Precision, Bf16>;
#define DEQ_A "l"(a.descriptor())
  if constexpr (columns == 160)
    DEQ_MULTIPLY(160, "k16.f32.bf16.bf16", "%80, %81", "%82", "1, 1, 0, 0", DEQ_A);
  else if constexpr (columns == 32 && bf16)
    DEQ_MULTIPLY(32, "k16.f32.bf16.bf16", "%16, %17", "%18", "1, 1, 0, 0", DEQ_A);
  else if constexpr (columns == 32)
    DEQ_MULTIPLY(32, "k8.f32.tf32.tf32", "%16, %17", "%18", "1, 1", DEQ_A);
  else if constexpr (bf16)
    DEQ_MULTIPLY(64, "k16.f32.bf16.bf16", "%32, %33", "%34", "1, 1, 0, 0", DEQ_A);
  else
    DEQ_MULTIPLY(64, "k8.f32.tf32.tf32", "%32, %33", "%34", "1, 1", DEQ_A);
#undef DEQ_A
}
#undef DEQ_MULTIPLY
#undef DEQ_OPERANDS_160
#undef DEQ_OPERANDS_64
#undef DEQ_OPERANDS_32
#undef DEQ_SUMS_160
#undef DEQ_SUMS_64
#undef DEQ_SUMS_32
#undef DEQ_SUMS_OF_32
#undef DEQ_SUMS_OF_EIGHT

/// What this thread has written to shared memory is there for the products of those that it meets
/// at a barrier.
__device__ inline void show_to_products() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
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

class LinesInShared {
 public:
  LinesInShared(SharedPlace from, int to_next_quad, int to_next_eight)
      : from_(reinterpret_cast<const unsigned*>(from)),
        to_next_quad_(to_next_quad),
        to_next_eight_(to_next_eight) {}
  LinesInShared operator+(int quads) const {
    LinesInShared on = *this;
    on.from_ += 4 * quads;
    return on;
  }
  unsigned word(int line, int i) const {
    return from_[4 * (line / 8 * to_next_eight_ + line % 8 + i / 4 * to_next_quad_) + i % 4];
  }

 private:
  const unsigned* from_;
  int to_next_quad_, to_next_eight_;
};
template <class Precision, int columns>
void multiply_behind(float (&d)[columns / 8][4], const unsigned (&a)[4], const LinesInShared& b) {
  const int lane = static_cast<int>(threadIdx.x) % warp_threads;
  for (int j = 0; j < columns / 8; ++j) {
    const int column = 8 * j + lane / 4, i = lane % 4;
    Arithmetic<float, Precision>::multiply(d[j], a, b.word(column, i), b.word(column, i + 4));
  }
}
template <class Precision, int columns>
void multiply_behind(float (&d)[columns / 8][4], const LinesInShared& a, const LinesInShared& b) {
  const int thread = static_cast<int>(threadIdx.x), i = thread % 4,
            row = thread / warp_threads % 4 * 16 + thread % warp_threads / 4;
  const unsigned words[4] = {a.word(row, i), a.word(row + 8, i), a.word(row, i + 4),
                             a.word(row + 8, i + 4)};
  multiply_behind<Precision, columns>(d, words, b);
}
inline void show_to_products() {}
inline void begin_products() {}
inline void close_products() {}
template <int left>
void wait_for_products() {}
inline void pin(float&) {}

#endif

/// The tile T of sums, by two groups of four warps, each of 64 rows and some of the columns. Rows
/// of A are read where they lie, if eights of them are equally far apart (`in_place`).
template <class T, class Precision, bool in_place>
class WarpgroupTile {
  using S = typename T::S;
  using Word = typename T::Word;
  static constexpr int groups_down = T::rows / 64, columns = T::columns * groups_down / 2;

 public:
  // As those of Tile.
  struct RowPlaces {
    int place, to_quad, to_eight;

    template <class PlaceOf>
    __device__ RowPlaces(PlaceOf&& place_of, int to_next_quad, int to_next_eight)
        : to_quad(to_next_quad), to_eight(to_next_eight) {
      if constexpr (in_place)
        place = of_warp(place_of(first_row() / 64 * 64));
      else
        place = place_of(first_row() + static_cast<int>(threadIdx.x) % 16) +
                static_cast<int>(threadIdx.x) % warp_threads / 16 * to_quad;
    }
  };

  template <int stages>
  __device__ void add_packed(const Word* a, const RowPlaces& of_a, LinesInShared b) {
    if constexpr (groups_down == 1) b = b + of_warp(first_column());
    constexpr int halves = stage_words / 8;
    pin_sums();
    if constexpr (in_place) {
      const int to_quad = of_a.to_quad / 4;
      const LinesInShared rows(in_shared(a + of_a.place), to_quad, of_a.to_eight / 4);
      begin_products();
#pragma unroll
      for (int s = 0; s < stages; ++s)
#pragma unroll
        for (int k = 0; k < halves; ++k)
          multiply_behind<Precision, columns>(sum_, rows + (s + 2 * k * to_quad),
                                              b + (s * stage_words + 8 * k) * T::columns / 4);
      close_products();
    } else {
      Word of_row[2][halves][4];
#pragma unroll
      for (int s = 0; s < stages; ++s) {
        // While the tensor cores have the stage before.
        if (s >= 2) wait_for_products<1>();
#pragma unroll
        for (int k = 0; k < halves; ++k)
          load_squares(of_row[s % 2][k], a + of_a.place + 4 * s + 2 * k * of_a.to_quad);
        begin_products();
#pragma unroll
        for (int k = 0; k < halves; ++k)
          multiply_behind<Precision, columns>(sum_, of_row[s % 2][k],
                                              b + (s * stage_words + 8 * k) * T::columns / 4);
        close_products();
      }
      wait();
    }
  }
  /// Everything is added, and what it was made of may be overwritten.
  __device__ void wait() {
    wait_for_products<0>();
    pin_sums();
  }
  /// What this thread has written is there for the others when they have met at a barrier.
  __device__ static void show_rows() {
    if constexpr (in_place) show_to_products();
  }

  template <class Body>
  __device__ void for_each_strip(Body body) const {
    body(first_row(), first_column(), sum_);
  }

  template <class Body>
  __device__ void for_each_four(Body body) {
#pragma unroll
    for (int j = 0; j < columns / 8; ++j) body(sum_[j], j);
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
template <class T, bool in_place>
using TileProduct =
    std::conditional_t<T::Arithmetic::tensor_cores,
                       WarpgroupTile<T, typename T::Arithmetic::Precision, in_place>, T>;
#else
template <class T, bool in_place>
using TileProduct = T;
#endif

}  // namespace deq::cuda
