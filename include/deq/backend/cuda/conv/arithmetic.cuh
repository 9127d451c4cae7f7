// SPDX-License-Identifier: MIT
// How a precision multiplies. Shared memory holds words: one number of S, one tf32, or two bf16
// that are neighbours along the sum. In words the fragments of all tensor core instructions used
// here are the same: of A (16 x 8 words) thread (g, t) = (lane / 4, lane % 4) has the words
// (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4), of B (8 words x 8 columns) the words (t, g), (t +
// 4, g), of the sums (16 x 8) the numbers (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). PTX
// ISA, "Matrix Fragments for mma.m16n8k8" and "... m16n8k16".
#pragma once

#include <deq/backend/cuda/launch.cuh>
#include <deq/backend/cuda/pointwise.cuh>
#include <deq/backend/cuda/precision.hpp>

namespace deq::cuda {

#ifdef __CUDACC__
/// Where something is in shared memory, as instructions want to be told; in bytes.
using SharedPlace = unsigned;
__device__ inline SharedPlace in_shared(const void* p) {
  return static_cast<SharedPlace>(__cvta_generic_to_shared(p));
}
#else
using SharedPlace = unsigned char*;
inline SharedPlace in_shared(const void* p) {
  return static_cast<SharedPlace>(const_cast<void*>(p));
}
#endif
/// What all threads of a warp agree on. The compiler keeps it in a register of the warp, where it
/// would work out again in every round of a loop what depends on special registers.
__device__ inline int of_warp(int x) { return __shfl_sync(0xffffffffu, x, 0); }
#ifdef __CUDACC__
__device__ inline SharedPlace of_warp(SharedPlace place) {
  return __shfl_sync(0xffffffffu, place, 0);
}
/// This thread's number in its warp. Volatile, so that what follows from it is worked out where it
/// is asked for: kept around a loop it would take registers that are needed inside.
__device__ inline int lane_here() {
  int lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
#else
inline SharedPlace of_warp(SharedPlace place) { return place; }
inline int lane_here() { return static_cast<int>(threadIdx.x) % warp_threads; }
#endif

/// Four squares of 8 lines of 4 words from shared memory: thread l gives the address of line l % 8
/// of square l / 8, and gets word (l / 4, l % 4) of every square.
__device__ inline void load_squares(unsigned (&words)[4], const unsigned* line) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(in_shared(line))
               : "memory");
#else
  deq_emulation::ldmatrix_x4(words, line);
#endif
}

/// The same of the squares transposed: words of two numbers of 16 bits, which change places.
__device__ inline void load_squares_transposed(unsigned (&words)[4], const unsigned* line) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(in_shared(line))
               : "memory");
#else
  deq_emulation::ldmatrix_x4_trans(words, line);
#endif
}

// Copies from global to shared memory that no thread waits for before wait_for_copies.

/// Both are aligned to 16 bytes.
template <class T>
__device__ void copy_behind(T* shared, const T* global) {
  static_assert(sizeof(T) % 16 == 0);
#pragma unroll
  for (std::size_t i = 0; i < sizeof(T); i += 16) {
    auto* const to = reinterpret_cast<unsigned char*>(shared) + i;
    const auto* const from = reinterpret_cast<const unsigned char*>(global) + i;
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(in_shared(to)), "l"(from)
                 : "memory");
#else
    deq_emulation::copy_async(to, from, 16, 16);
#endif
  }
}
/// 16 bytes, or as many zeros where there are none.
__device__ inline void copy_behind_if(bool there, void* shared, const void* global) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(in_shared(shared)),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
#else
  deq_emulation::copy_async(shared, global, 16, there ? 16 : 0);
#endif
}
/// What this thread has copied since the last call is a group.
__device__ inline void close_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  deq_emulation::copy_async_commit();
#endif
}
/// All groups of this thread but the last `left` have arrived.
template <int left>
__device__ void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#else
  deq_emulation::copy_async_wait(left);
#endif
}

template <class S, class Precision>
struct Arithmetic;

template <class S>
struct Arithmetic<S, Strict> {
  using Precision = Strict;
  using Scalar = S;
  using Word = S;
  static constexpr int numbers = 1;  ///< a word
  static constexpr bool tensor_cores = false;

  __device__ static Word word(const S (&x)[numbers]) { return x[0]; }
};

template <>
struct Arithmetic<float, Tf32> {
  using Precision = Tf32;
  using Scalar = float;
  using Word = unsigned;
  static constexpr int numbers = 1;
  static constexpr bool tensor_cores = true;

#ifdef __CUDACC__
  __device__ static Word word(const float (&x)[numbers]) {
    Word w;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(w) : "f"(x[0]));
    return w;
  }
  /// sum += a b
  __device__ static void multiply(float (&sum)[4], const Word (&a)[4], Word b0, Word b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  static Word word(const float (&x)[numbers]) { return deq_emulation::to_tf32(x[0]); }
  static void multiply(float (&sum)[4], const Word (&a)[4], Word b0, Word b1) {
    const Word b[2] = {b0, b1};
    deq_emulation::mma_m16n8k8_tf32(sum, a, b);
  }
#endif
};

template <>
struct Arithmetic<float, Bf16> {
  using Precision = Bf16;
  using Scalar = float;
  using Word = unsigned;
  static constexpr int numbers = 2;
  static constexpr bool tensor_cores = true;

  __device__ static Word word(const float (&x)[numbers]) { return bfloat16_pair(x[0], x[1]); }
#ifdef __CUDACC__
  /// sum += a b
  __device__ static void multiply(float (&sum)[4], const Word (&a)[4], Word b0, Word b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
#else
  static void multiply(float (&sum)[4], const Word (&a)[4], Word b0, Word b1) {
    const Word b[2] = {b0, b1};
    deq_emulation::mma_m16n8k16_bf16(sum, a, b);
  }
#endif
};

}  // namespace deq::cuda
