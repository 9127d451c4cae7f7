// SPDX-License-Identifier: MIT
// Matrix products of a warp, with the fragment layouts of the PTX ISA ("Matrix Fragments for
// mma.m16n8k8" and "mma.m16n8k16"), and what loads and rounds their operands.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

#include "device_functions.hpp"
#include "executor.hpp"

namespace deq_emulation {

/// cvt.rna.tf32.f32: the nearest number with 10 bits of fraction, the one away from 0 of two.
inline unsigned to_tf32(float x) {
  const auto bits = std::bit_cast<unsigned>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
  return (bits + 0x1000u) & ~0x1fffu;
}

/// The nearest bfloat16, the even one of two.
inline unsigned to_bf16(float x) {
  const auto bits = std::bit_cast<unsigned>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
/// cvt.rn.bf16x2.f32.
inline unsigned pack_bf16(float low, float high) { return to_bf16(high) << 16 | to_bf16(low); }

/// The fragments of one lane.
struct Fragments {
  float* d;
  const unsigned* a;
  const unsigned* b;
};

/// d += a b for matrices of 16 x k, k x 8 and 16 x 8, given the element of each fragment:
/// a_element(fragments, row, column), b_element(fragments, row, column).
template <unsigned k, class A, class B>
void multiply(const WarpOperation::Arguments& lanes, A a_element, B b_element) {
  for (const void* lane : lanes)
    if (!lane) executor.give_up("mma without all lanes of the warp");
  const auto fragments = [&](unsigned lane) -> const Fragments& {
    return *static_cast<const Fragments*>(lanes[lane]);
  };
  float a[16][k], b[k][8];
  for (unsigned i = 0; i < 16; ++i)
    for (unsigned j = 0; j < k; ++j) a[i][j] = a_element(fragments, i, j);
  for (unsigned i = 0; i < k; ++i)
    for (unsigned j = 0; j < 8; ++j) b[i][j] = b_element(fragments, i, j);
  for (unsigned i = 0; i < 16; ++i) {
    float row[8] = {};
    for (unsigned l = 0; l < k; ++l)
      for (unsigned j = 0; j < 8; ++j) row[j] += a[i][l] * b[l][j];
    for (unsigned j = 0; j < 8; ++j) fragments(i % 8 * 4 + j / 2).d[i / 8 * 2 + j % 2] += row[j];
  }
}

inline void perform_mma_tf32(const WarpOperation::Arguments& lanes) {
  // The hardware reads a float and ignores what tf32 has no bits for.
  const auto value = [](unsigned bits) { return std::bit_cast<float>(bits & ~0x1fffu); };
  multiply<8>(
      lanes,
      [&](auto fragments, unsigned row, unsigned column) {
        return value(fragments(row % 8 * 4 + column % 4).a[column / 4 * 2 + row / 8]);
      },
      [&](auto fragments, unsigned row, unsigned column) {
        return value(fragments(column * 4 + row % 4).b[row / 4]);
      });
}

inline void perform_mma_bf16(const WarpOperation::Arguments& lanes) {
  const auto value = [](unsigned pair, unsigned which) {
    return std::bit_cast<float>(which == 0 ? pair << 16 : pair & 0xffff0000u);
  };
  multiply<16>(
      lanes,
      [&](auto fragments, unsigned row, unsigned column) {
        return value(fragments(row % 8 * 4 + column % 8 / 2).a[column / 8 * 2 + row / 8],
                     column % 2);
      },
      [&](auto fragments, unsigned row, unsigned column) {
        return value(fragments(column * 4 + row % 8 / 2).b[row / 8], row % 2);
      });
}

inline constexpr WarpOperation mma_tf32{"mma.m16n8k8.tf32", &perform_mma_tf32};
inline constexpr WarpOperation mma_bf16{"mma.m16n8k16.bf16", &perform_mma_bf16};

/// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32, in place: d += a b.
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Fragments fragments{d, a, b};
  executor.rendezvous(mma_tf32, full_mask, &fragments);
}

/// mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, in place: d += a b.
inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Fragments fragments{d, a, b};
  executor.rendezvous(mma_bf16, full_mask, &fragments);
}

/// What a lane brings to ldmatrix, a row of 8 elements of 16 bits, and gets.
struct LoadMatrix {
  const void* row;
  unsigned* fragment;
};

inline void perform_load_matrix(const WarpOperation::Arguments& lanes, bool transposed) {
  std::array<std::array<std::uint16_t, 8>, warp_size> rows;
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (!lanes[lane]) executor.give_up("ldmatrix without all lanes of the warp");
    const void* row = static_cast<const LoadMatrix*>(lanes[lane])->row;
    if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
      executor.give_up("a row of ldmatrix is not aligned to 16 bytes");
    std::memcpy(rows[lane].data(), row, 16);
  }
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    const unsigned i = lane / 4, j = lane % 4 * 2;
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned low = transposed ? rows[8 * m + j][i] : rows[8 * m + i][j];
      const unsigned high = transposed ? rows[8 * m + j + 1][i] : rows[8 * m + i][j + 1];
      static_cast<const LoadMatrix*>(lanes[lane])->fragment[m] = high << 16 | low;
    }
  }
}

inline constexpr WarpOperation load_matrix{
    "ldmatrix.x4",
    [](const WarpOperation::Arguments& lanes) { perform_load_matrix(lanes, false); }};
inline constexpr WarpOperation load_matrix_transposed{
    "ldmatrix.x4.trans",
    [](const WarpOperation::Arguments& lanes) { perform_load_matrix(lanes, true); }};

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16: r[m] is the lane's part of matrix m, of which lanes
/// 8 m, ..., 8 m + 7 name the rows.
inline void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  LoadMatrix argument{row, r};
  executor.rendezvous(load_matrix, full_mask, &argument);
}
/// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: of the transposed matrices.
inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
  LoadMatrix argument{row, r};
  executor.rendezvous(load_matrix_transposed, full_mask, &argument);
}

inline constexpr WarpOperation move_matrix{
    "movmatrix", [](const WarpOperation::Arguments& lanes) {
      std::array<std::array<std::uint16_t, 8>, 8> rows;
      for (unsigned lane = 0; lane < warp_size; ++lane) {
        if (!lanes[lane]) executor.give_up("movmatrix without all lanes of the warp");
        const unsigned pair = *static_cast<const unsigned*>(lanes[lane]);
        rows[lane / 4][lane % 4 * 2] = static_cast<std::uint16_t>(pair);
        rows[lane / 4][lane % 4 * 2 + 1] = static_cast<std::uint16_t>(pair >> 16);
      }
      for (unsigned lane = 0; lane < warp_size; ++lane) {
        const unsigned i = lane / 4, j = lane % 4 * 2;
        *static_cast<unsigned*>(lanes[lane]) = unsigned{rows[j + 1][i]} << 16 | rows[j][i];
      }
    }};

/// movmatrix.sync.aligned.m8n8.trans.b16: two elements of a row of the transposed matrix.
inline unsigned movmatrix_trans(unsigned pair) {
  executor.rendezvous(move_matrix, full_mask, &pair);
  return pair;
}

}  // namespace deq_emulation
