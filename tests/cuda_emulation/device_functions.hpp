// SPDX-License-Identifier: MIT
// The built-in variables and functions of CUDA C++.
#pragma once

#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "executor.hpp"
#include "types.hpp"

inline const uint3& threadIdx = deq_emulation::executor.thread_index;
inline const uint3& blockIdx = deq_emulation::executor.block_index;
inline const dim3& blockDim = deq_emulation::executor.block_dim;
inline const dim3& gridDim = deq_emulation::executor.grid_dim;
inline constexpr int warpSize = deq_emulation::warp_size;

namespace deq_emulation {

inline constexpr unsigned full_mask = 0xffffffff;

/// What a lane brings to a shuffle, and gets.
template <class T>
struct Shuffle {
  T value;
  unsigned source;
};

template <class T>
void perform_shuffle(const WarpOperation::Arguments& arguments) {
  std::array<T, warp_size> values;
  // Of a lane that does not take part, the value is undefined: NaN.
  std::memset(values.data(), 0xff, sizeof values);
  for (unsigned lane = 0; lane < warp_size; ++lane)
    if (arguments[lane]) values[lane] = static_cast<Shuffle<T>*>(arguments[lane])->value;
  for (void* argument : arguments) {
    if (!argument) continue;
    auto& shuffle = *static_cast<Shuffle<T>*>(argument);
    shuffle.value = values[shuffle.source];
  }
}

template <class T>
inline constexpr WarpOperation shfl{"__shfl_sync", &perform_shuffle<T>};
template <class T>
inline constexpr WarpOperation shfl_up{"__shfl_up_sync", &perform_shuffle<T>};
template <class T>
inline constexpr WarpOperation shfl_down{"__shfl_down_sync", &perform_shuffle<T>};
template <class T>
inline constexpr WarpOperation shfl_xor{"__shfl_xor_sync", &perform_shuffle<T>};

inline constexpr WarpOperation syncwarp{"__syncwarp", [](const WarpOperation::Arguments&) {}};

/// What a lane brings to a vote, and gets: the lanes with a predicate, and the lanes that voted.
struct Vote {
  bool predicate;
  unsigned yes = 0, all = 0;
};

inline void perform_vote(const WarpOperation::Arguments& arguments) {
  unsigned yes = 0, all = 0;
  for (unsigned lane = 0; lane < warp_size; ++lane) {
    if (!arguments[lane]) continue;
    all |= 1u << lane;
    if (static_cast<const Vote*>(arguments[lane])->predicate) yes |= 1u << lane;
  }
  for (void* argument : arguments) {
    if (!argument) continue;
    static_cast<Vote*>(argument)->yes = yes;
    static_cast<Vote*>(argument)->all = all;
  }
}

inline constexpr WarpOperation ballot{"__ballot_sync", &perform_vote};
inline constexpr WarpOperation vote_any{"__any_sync", &perform_vote};
inline constexpr WarpOperation vote_all{"__all_sync", &perform_vote};

inline Vote vote(const WarpOperation& operation, unsigned mask, int predicate) {
  Vote result{.predicate = predicate != 0};
  executor.rendezvous(operation, mask, &result);
  return result;
}

template <class T>
T shuffle(const WarpOperation& operation, unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  Shuffle<T> argument{value, source};
  executor.rendezvous(operation, mask, &argument);
  return argument.value;
}

}  // namespace deq_emulation

// Waiting -----------------------------------------------------------------------------------------

inline void __syncthreads() { deq_emulation::executor.barrier(); }
inline void __syncwarp(unsigned mask = deq_emulation::full_mask) {
  deq_emulation::executor.rendezvous(deq_emulation::syncwarp, mask, &mask);
}
// Threads take turns on one OS thread: what one has written, every other one sees.
inline void __threadfence() {}
inline void __threadfence_block() {}

// Warps -------------------------------------------------------------------------------------------

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const unsigned lane = deq_emulation::executor.lane(), w = static_cast<unsigned>(width);
  return deq_emulation::shuffle(deq_emulation::shfl<T>, mask, value,
                                lane / w * w + static_cast<unsigned>(source) % w);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const unsigned lane = deq_emulation::executor.lane(), w = static_cast<unsigned>(width);
  return deq_emulation::shuffle(deq_emulation::shfl_up<T>, mask, value,
                                lane % w >= delta ? lane - delta : lane);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const unsigned lane = deq_emulation::executor.lane(), w = static_cast<unsigned>(width);
  return deq_emulation::shuffle(deq_emulation::shfl_down<T>, mask, value,
                                lane % w + delta < w ? lane + delta : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize) {
  const unsigned lane = deq_emulation::executor.lane(), w = static_cast<unsigned>(width);
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  // Groups before the lane's own may be read, those after it may not.
  return deq_emulation::shuffle(deq_emulation::shfl_xor<T>, mask, value,
                                source / w <= lane / w ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return deq_emulation::vote(deq_emulation::ballot, mask, predicate).yes;
}
inline int __any_sync(unsigned mask, int predicate) {
  return deq_emulation::vote(deq_emulation::vote_any, mask, predicate).yes != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  const deq_emulation::Vote vote = deq_emulation::vote(deq_emulation::vote_all, mask, predicate);
  return vote.yes == vote.all;
}

// Atomics -----------------------------------------------------------------------------------------

namespace deq_emulation {

/// *address becomes `next`; returns what it was.
template <class T>
T replace(T* address, T next) {
  const T old = *address;
  *address = next;
  return old;
}

}  // namespace deq_emulation

inline int atomicAdd(int* address, int x) {
  return deq_emulation::replace(
      address, static_cast<int>(static_cast<unsigned>(*address) + static_cast<unsigned>(x)));
}
inline unsigned atomicAdd(unsigned* address, unsigned x) {
  return deq_emulation::replace(address, *address + x);
}
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long x) {
  return deq_emulation::replace(address, *address + x);
}
inline float atomicAdd(float* address, float x) {
  return deq_emulation::replace(address, *address + x);
}
inline double atomicAdd(double* address, double x) {
  return deq_emulation::replace(address, *address + x);
}

inline int atomicMax(int* address, int x) {
  return deq_emulation::replace(address, *address < x ? x : *address);
}
inline unsigned atomicMax(unsigned* address, unsigned x) {
  return deq_emulation::replace(address, *address < x ? x : *address);
}
inline unsigned atomicOr(unsigned* address, unsigned x) {
  return deq_emulation::replace(address, *address | x);
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return deq_emulation::replace(address, *address >= limit ? 0 : *address + 1);
}

inline int atomicExch(int* address, int x) { return deq_emulation::replace(address, x); }
inline unsigned atomicExch(unsigned* address, unsigned x) {
  return deq_emulation::replace(address, x);
}
inline unsigned long long atomicExch(unsigned long long* address, unsigned long long x) {
  return deq_emulation::replace(address, x);
}
inline float atomicExch(float* address, float x) { return deq_emulation::replace(address, x); }

inline int atomicCAS(int* address, int expected, int x) {
  return deq_emulation::replace(address, *address == expected ? x : *address);
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned x) {
  return deq_emulation::replace(address, *address == expected ? x : *address);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long x) {
  return deq_emulation::replace(address, *address == expected ? x : *address);
}

// Arithmetic --------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : 1 + std::countr_zero(static_cast<unsigned>(x)); }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }

[[noreturn]] inline void __trap() { deq_emulation::executor.give_up("__trap()"); }
