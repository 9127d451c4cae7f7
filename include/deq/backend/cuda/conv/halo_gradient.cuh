// SPDX-License-Identifier: MIT
// The weight gradient in bfloat16 of a convolution whose tiles keep a halo: for every tap, the
// product of the pixels under it, transposed, with the cotangents, a slice of channels by 64
// outputs a block. A block has the sums of all taps in registers while tiles of pixels stream by,
// so that a pixel is read and rounded once for all taps.
#pragma once

#include <deq/backend/cuda/conv/halo.cuh>

namespace deq::cuda {

/// The cotangents of a tile of pixels, of 64 outputs, a line of shared memory a pixel.
template <class T, class X>
class HaloCotangents {
  using Word = typename T::Word;
  static constexpr int numbers = 8, packs = T::columns / numbers,  // of a thread, of a pixel
      width = best_pack<X>;

 public:
  static constexpr int line = T::columns / 2 + 4;  ///< words, in different banks
  static constexpr int parts = 2, quads = T::rows * packs / threads / parts;
  struct Part {
    Numbers<X, numbers, width> quad[quads];
  };

  __device__ HaloCotangents(const ImageMap& map, const Segments& segments, const X* dy,
                            int first_output)
      : map_(map), segments_(segments), dy_(dy), output_(first_output + pack() * numbers) {}

  __device__ Part load(Index first_row, int part) const {
    Part loaded;
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      const Segments::Row at = segments_.row(first_row + row(part, q));
      const X* const from =
          dy_ + (at.sample * map_.pixels() + at.pixel) * map_.out_channels + output_;
      const bool there = at.sample < map_.samples && at.pixel < map_.pixels();
#pragma unroll
      for (int i = 0; i < numbers; i += width)
        loaded.quad[q].pack[i / width] =
            load_if<width>(there && output_ + i < map_.out_channels, from + i);
    }
    return loaded;
  }
  __device__ void put(const Part& loaded, int part, Word* to) const {
#pragma unroll
    for (int q = 0; q < quads; ++q) {
      Quad<Word> words;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words.word[i] = loaded.quad[q].template word<typename T::Arithmetic>(i);
      store_pack(to + row(part, q) * line + pack() * 4, words);
    }
  }

 private:
  __device__ static int pack() { return static_cast<int>(threadIdx.x) % packs; }
  __device__ static int row(int part, int q) {
    return static_cast<int>(threadIdx.x) / packs + (part * quads + q) * (threads / packs);
  }

  const ImageMap& map_;
  const Segments& segments_;
  const X* dy_;
  int output_;  ///< the first of this thread
};

/// Words of shared memory for a tile of pixels: its halo, its cotangents, and where the pixels of
/// its rows are in the halo.
template <class T, class X>
DEQ_HOST_DEVICE int gradient_words(const Halo& halo) {
  return halo.pixels() * T::line + T::rows * HaloCotangents<T, X>::line + T::rows;
}

/// parts[blockIdx.z] = the sums over `tiles` tiles of pixels from blockIdx.z * tiles on, for a
/// slice of the channels (blockIdx.x), 64 outputs (blockIdx.y) and the taps of a kernel of side x
/// side.
template <class T, int side, class X>
__global__ void __launch_bounds__(threads, 2)
    halo_gradient_kernel(ImageMap map, Segments segments, Halo halo, const X* x,
                         const X* dy, int row_tiles, int tiles, typename T::S* parts) {
  using S = typename T::S;
  using Word = typename T::Word;
  using Pixels = HaloPixels<T, X, best_pack<X>>;
  using Cotangents = HaloCotangents<T, X>;
  static_assert(T::Arithmetic::numbers == 2 && T::columns == 64);
  constexpr int pixel_parts = 2, steps = T::rows / 16, pieces = pixel_parts + Cotangents::parts;
  constexpr int span = steps / pieces;  // steps that the numbers of a piece are on their way
  const int slice = static_cast<int>(blockIdx.x), first_output = static_cast<int>(blockIdx.y) * 64;
  const int first = static_cast<int>(blockIdx.z) * tiles,
            last = first + tiles < row_tiles ? first + tiles : row_tiles;
  Word* const shared = dynamic_shared<Word>();
  const Cotangents b(map, segments, dy, first_output);
  const RowSet all;

  // A warp has 16 channels by 16 outputs of every tap.
  const int lane = static_cast<int>(threadIdx.x) % warp_threads,
            warp = static_cast<int>(threadIdx.x) / warp_threads;
  const int channel = warp % 2 * 16, output = warp / 2 * 16;
  // Which line of which square this thread names to load_squares_transposed.
  const int row_of_a = lane / 16 * 8 + lane % 8, word_of_a = channel / 2 + lane / 8 % 2 * 4;
  const int row_of_b = lane % 16, word_of_b = output / 2 + lane / 16 * 4;

  const auto tile_at = [&](int tile) { return shared + tile % 2 * gradient_words<T, X>(halo); };
  const auto cotangents_at = [&](int tile) { return tile_at(tile) + halo.pixels() * T::line; };
  const auto places_at = [&](int tile) {
    return reinterpret_cast<int*>(cotangents_at(tile) + T::rows * Cotangents::line);
  };
  const auto put_places = [&](const Pixels& a, int tile) {
    const int row = static_cast<int>(threadIdx.x);
    if (row < T::rows) places_at(tile)[row] = a.place_of(row);
  };

  S sum[side * side][2][4] = {};
  if (first < last) {
    const Pixels a(map, halo, segments, all, x, static_cast<Index>(first) * T::rows);
    put_places(a, first);
    a.fetch(slice, tile_at(first));
    for (int part = 0; part < Cotangents::parts; ++part)
      b.put(b.load(static_cast<Index>(first) * T::rows, part), part, cotangents_at(first));
  }
  for (int tile = first; tile < last; ++tile) {
    __syncthreads();
    const bool more = tile + 1 < last;
    const Index next_row = static_cast<Index>(tile + 1) * T::rows;
    const Pixels a(map, halo, segments, all, x, next_row);
    if (more) put_places(a, tile + 1);
    typename Pixels::Part of_a;
    typename Cotangents::Part of_b;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int piece = step / span;
      if (more && step % span == 0) {
        if (piece == 0)
          of_a = a.template load<0>(slice);
        else if (piece == 1 && a.in_parts())
          of_a = a.template load<1>(slice);
        else if (piece >= pixel_parts)
          of_b = b.load(next_row, piece - pixel_parts);
      }
      const Word* const pixel = tile_at(tile) + places_at(tile)[16 * step + row_of_a] + word_of_a;
      Word right[4];
      load_squares_transposed(
          right, cotangents_at(tile) + (16 * step + row_of_b) * Cotangents::line + word_of_b);
#pragma unroll
      for (int tap = 0; tap < side * side; ++tap) {
        Word left[4];
        load_squares_transposed(left, pixel + (tap / side * halo.width + tap % side) * T::line);
#pragma unroll
        for (int j = 0; j < 2; ++j)
          T::Arithmetic::multiply(sum[tap][j], left, right[2 * j], right[2 * j + 1]);
      }
      if (more && step % span == span - 1) {
        if (piece == 0)
          a.template put<0>(of_a, tile_at(tile + 1));
        else if (piece == 1 && a.in_parts())
          a.template put<1>(of_a, tile_at(tile + 1));
        else if (piece >= pixel_parts)
          b.put(of_b, piece - pixel_parts, cotangents_at(tile + 1));
      }
    }
  }

  parts += static_cast<Index>(blockIdx.z) * map.depth() * map.out_channels;
#pragma unroll
  for (int tap = 0; tap < side * side; ++tap)
#pragma unroll
    for (int j = 0; j < 2; ++j)
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int c = slice * T::stage + channel + lane / 4 + k / 2 * 8,
                  o = first_output + output + 8 * j + lane % 4 * 2 + k % 2;
        if (c < map.channels && o < map.out_channels)
          parts[static_cast<Index>(tap * map.channels + c) * map.out_channels + o] = sum[tap][j][k];
      }
}

}  // namespace deq::cuda
