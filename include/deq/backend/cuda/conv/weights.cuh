// SPDX-License-Identifier: MIT
// How the packed weight of a tile of columns comes to shared memory: in stages of some taps of a
// slice, as they are in memory, of which the next ones are on their way while one is multiplied.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <deq/backend/cuda/conv/warpgroup.cuh>

namespace deq::cuda {

/// Stages that are in shared memory: one that is multiplied, and one or two on their way.
template <class T, int taps>
struct WeightStages {
  static constexpr int size = taps * T::packed_size;  ///< in words
  static constexpr int bytes = size * static_cast<int>(sizeof(typename T::Word));
  // Large ones take long to be multiplied, and two blocks of a processor have to find room; so have
  // four of low tiles.
  static constexpr int count =
      sizeof(typename T::Word) > 4 || bytes > 24 << 10 || T::rows == 64 ? 2 : 3;
};

/// By copies of all threads.
template <class T, int taps>
class CopiedWeights : public WeightStages<T, taps> {
  using Word = typename T::Word;
  using WeightStages<T, taps>::count, WeightStages<T, taps>::size;

 public:
  /// So many stages, from the first on.
  __device__ CopiedWeights(const Word* from, int stages, Word* shared)
      : from_(from + 4 * threadIdx.x), shared_(shared + 4 * threadIdx.x), left_(stages) {
    for (int i = 0; i + 1 < count; ++i) copy_next();
  }
  /// Overwrites the stage that was waited for before the last one, with which all must be done.
  __device__ void copy_next() {
    if (left_-- > 0) {
#pragma unroll
      for (int i = 0; i < size; i += 4 * threads)
        if (size % (4 * threads) == 0 || i + 4 * static_cast<int>(threadIdx.x) < size)
          copy_behind(reinterpret_cast<Quad<Word>*>(shared_ + next_ * size + i),
                      reinterpret_cast<const Quad<Word>*>(from_ + i));
    }
    close_copies();
    from_ += size;
    next_ = next_ + 1 < count ? next_ + 1 : 0;
  }
  /// The next stage, of which what this thread has copied is there.
  __device__ const Word* wait() {
    wait_for_copies<count - 2>();
    const int stage = stage_;
    stage_ = stage_ + 1 < count ? stage_ + 1 : 0;
    return shared_ - 4 * threadIdx.x + stage * size;
  }

 private:
  const Word* from_;
  Word* shared_;
  int left_, next_ = 0, stage_ = 0;
};

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#ifdef __CUDACC__

// The copy engine: one thread sets it to work, all may wait.

__device__ inline void begin_arrivals(SharedPlace barrier) {
  asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
__device__ inline void copy_in_bulk(SharedPlace shared, const void* global, int bytes,
                                    SharedPlace barrier) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared.b64 _, [%2], %3;\n"
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %3, [%2];" ::
          "r"(shared),
      "l"(global), "r"(barrier), "r"(bytes)
      : "memory");
}
/// For the copy of this parity.
__device__ inline void wait_for_arrival(SharedPlace barrier, int parity) {
  asm volatile(
      "{.reg .pred there;\n"
      "wait:\n"
      "mbarrier.try_wait.parity.shared.b64 there, [%0], %1;\n"
      "@there bra done;\n"
      "bra wait;\n"
      "done: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

#else

inline void begin_arrivals(SharedPlace) {}
inline void copy_in_bulk(SharedPlace shared, const void* global, int bytes, SharedPlace) {
  std::memcpy(shared, global, static_cast<std::size_t>(bytes));
}
inline void wait_for_arrival(SharedPlace, int) {}

#endif

/// By the copy engine, which needs no thread for it; for wgmma.
template <class T, int taps>
class WeightsInBulk : public WeightStages<T, taps> {
  using Word = typename T::Word;
  using Stages = WeightStages<T, taps>;
  using Stages::count, Stages::size, Stages::bytes;

 public:
  // As those of CopiedWeights.
  __device__ WeightsInBulk(const Word* from, int stages, Word* shared)
      : from_(from),
        shared_(of_warp(in_shared(shared))),
        arrivals_(of_warp(in_shared(barriers()))),
        left_(stages),
        of_first_warp_(of_warp(static_cast<int>(threadIdx.x) / warp_threads) == 0) {
    if (threadIdx.x == 0) {
      for (int i = 0; i < count; ++i) begin_arrivals(arrivals_ + i * barrier_bytes);
      show_to_products();  // and to the copy engine
    }
    __syncthreads();
    for (int i = 0; i + 1 < count; ++i) copy_next();
  }
  __device__ void copy_next() {
    if (left_-- > 0 && of_first_warp_ && lane_here() == 0)
      copy_in_bulk(shared_ + next_ * bytes, from_, bytes, arrivals_ + next_ * barrier_bytes);
    from_ += size;
    next_ = next_ + 1 < count ? next_ + 1 : 0;
  }
  __device__ LinesInShared wait() {
    const int stage = stage_;
    wait_for_arrival(arrivals_ + stage * barrier_bytes, parity_);
    if (++stage_ == count) {
      stage_ = 0;
      parity_ ^= 1;
    }
    return LinesInShared(shared_, T::columns, 8) + stage * (size / 4);
  }

 private:
  static constexpr int barrier_bytes = sizeof(std::uint64_t);
  __device__ static std::uint64_t* barriers() {
    __shared__ std::uint64_t arrivals[count];
    return arrivals;
  }

  const Word* from_;
  SharedPlace shared_, arrivals_;
  int left_, next_ = 0, stage_ = 0, parity_ = 0;
  bool of_first_warp_;
};

template <class T, int taps>
using TileWeights =
    std::conditional_t<T::Arithmetic::tensor_cores, WeightsInBulk<T, taps>, CopiedWeights<T, taps>>;
#else
template <class T, int taps>
using TileWeights = CopiedWeights<T, taps>;
#endif

}  // namespace deq::cuda
