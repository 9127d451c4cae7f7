// SPDX-License-Identifier: MIT
// The weight gradient in bfloat16 of a convolution whose tiles keep a halo: for every tap, the
// product of the pixels under it, transposed, with the cotangents, a slice of channels by 64
// outputs a block. A block has the sums of all taps in registers while tiles of pixels stream by,
// so that a pixel is read once for all taps. Images are stored as bfloat16.
#pragma once

#include <deq/backend/cuda/conv/halo.cuh>

namespace deq::cuda {

/// The cotangents of a tile of pixels, of 64 outputs, a line of shared memory a pixel.
template <class T>
class HaloCotangents {
  using Word = typename T::Word;
  static constexpr int numbers = best_pack<Bfloat16>, packs = T::columns / numbers;  // of a pixel

 public:
  static constexpr int line = T::columns / 2 + 4;  ///< words, in different banks

  __device__ HaloCotangents(const ImageMap& map, const Segments& segments, const Bfloat16* dy,
                            int first_output)
      : map_(map), segments_(segments), dy_(dy), output_(first_output + pack() * numbers) {}

  /// Copies those of the tile that begins with this row, by lines of pairs or as they are.
  template <bool pairs>
  __device__ void copy(Index first_row, Word* to) const {
#pragma unroll
    for (int row = static_cast<int>(threadIdx.x) / packs; row < T::rows; row += threads / packs) {
      const Segments::Row at = segments_.row(first_row + (pairs ? PairedImages::row(row) : row));
      const bool there = exists(map_, at) && output_ < map_.out_channels;
      copy_behind_if(
          there, to + row * line + pack() * 4,
          there ? dy_ + static_cast<Index>(output_pixel(map_, at)) * map_.out_channels + output_
                : dy_);
    }
  }

 private:
  __device__ static int pack() { return static_cast<int>(threadIdx.x) % packs; }

  const ImageMap& map_;
  const Segments& segments_;
  const Bfloat16* dy_;
  int output_;  ///< the first of this thread
};

/// Words of shared memory for a tile of pixels: its halo, its cotangents, and where the pixels of
/// its rows are in the halo.
template <class T>
DEQ_HOST_DEVICE int gradient_words(const Halo& halo) {
  return halo.size() + T::rows * HaloCotangents<T>::line + T::rows;
}

/// Outputs whose sums have room in shared memory at a time, and how long the line of one is.
inline constexpr int gradient_outputs = 32;
template <class T, int side>
inline constexpr int gradient_line = 1 + side* side* T::stage;

/// For two tiles of pixels; then for sums.
template <class T, int side>
std::size_t gradient_bytes(const Halo& halo) {
  return sizeof(typename T::S) *
         static_cast<std::size_t>(
             std::max(2 * gradient_words<T>(halo), gradient_outputs * gradient_line<T, side>));
}

/// parts[blockIdx.z] = the sums over `tiles` tiles of pixels from blockIdx.z * tiles on, for a
/// slice of the channels (blockIdx.x), 64 outputs (blockIdx.y) and the taps of a kernel of side x
/// side; each part as dw is. Of PairedImages, whose lines lie below each other, the pixels under
/// one line of the kernel are those under another one two lines before, and stay in registers: of
/// 18 fragments that are multiplied 9 are loaded.
template <class T, int side, bool pairs>
__global__ void __launch_bounds__(threads, 2)
    halo_gradient_kernel(ImageMap map, Segments segments, Halo halo, const Bfloat16* x,
                         const Bfloat16* dy, int row_tiles, int tiles, typename T::S* parts) {
  using S = typename T::S;
  using Word = typename T::Word;
  using Pixels = HaloPixels<T, Bfloat16, best_pack<Bfloat16>>;
  using Cotangents = HaloCotangents<T>;
  static_assert(T::Arithmetic::numbers == 2 && T::columns == 64 && Pixels::behind);
  static_assert(!pairs || side == 3);
  constexpr int steps = T::rows / 16;
  const int slice = static_cast<int>(blockIdx.x),
            first_output = static_cast<int>(blockIdx.y) * T::columns;
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
  const int row_of_a = lane / 16 * 8 + lane % 8, quad_of_a = channel / 8 + lane / 8 % 2;
  const int row_of_b = lane % 16, word_of_b = output / 2 + lane / 16 * 4;

  const auto tile_at = [&](int tile) { return shared + tile % 2 * gradient_words<T>(halo); };
  const auto cotangents_at = [&](int tile) { return tile_at(tile) + halo.size(); };
  const auto places_at = [&](int tile) {
    return reinterpret_cast<int*>(cotangents_at(tile) + T::rows * Cotangents::line);
  };
  const auto copy_tile = [&](int tile) {
    const Index first_row = static_cast<Index>(tile) * T::rows;
    const Pixels a(map, halo, segments, all, x, first_row);
    const int row = static_cast<int>(threadIdx.x);
    if (row < T::rows) places_at(tile)[row] = a.place_of(pairs ? PairedImages::row(row) : row);
    b.template copy<pairs>(first_row, cotangents_at(tile));
    typename Pixels::Part none;
    a.begin(slice, tile_at(tile), none);
  };

  S sum[side * side][2][4] = {};
  if (first < last) copy_tile(first);
  for (int tile = first; tile < last; ++tile) {
    wait_for_copies<0>();
    __syncthreads();
    if (tile + 1 < last) copy_tile(tile + 1);
    const auto load_right = [&](Word(&right)[4], int step) {
      load_squares_transposed(
          right, cotangents_at(tile) + (16 * step + row_of_b) * Cotangents::line + word_of_b);
    };
    const auto multiply = [&sum](int tap, const Word(&left)[4], const Word(&right)[4]) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        T::Arithmetic::multiply(sum[tap][j], left, right[2 * j], right[2 * j + 1]);
    };
    if constexpr (pairs) {
      constexpr int run = PairedImages::side / 2;  // steps
      const Word* pixel = nullptr;
      Word upper[side][4];
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        // Two lines of the halo under the columns of the taps, and, a step later, the next two.
        if (step % run == 0) {
          pixel = tile_at(tile) + places_at(tile)[16 * step + lane % 8] +
                  lane / 16 * halo.width * 4 + quad_of_a * halo.plane();
#pragma unroll
          for (int x_tap = 0; x_tap < side; ++x_tap)
            load_squares_transposed(upper[x_tap], pixel + 4 * x_tap);
        }
        pixel += 2 * halo.width * 4;
        Word right[4];
        load_right(right, step);
#pragma unroll
        for (int x_tap = 0; x_tap < side; ++x_tap) {
          Word(&above)[4] = upper[x_tap];
          Word below[4];
          load_squares_transposed(below, pixel + 4 * x_tap);
          multiply(x_tap, above, right);
          multiply(side + x_tap, {above[2], above[3], below[0], below[1]}, right);
          multiply(2 * side + x_tap, below, right);
#pragma unroll
          for (int k = 0; k < 4; ++k) above[k] = below[k];
        }
      }
    } else {
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const Word* const pixel =
            tile_at(tile) + places_at(tile)[16 * step + row_of_a] + quad_of_a * halo.plane();
        Word right[4];
        load_right(right, step);
#pragma unroll
        for (int tap = 0; tap < side * side; ++tap) {
          Word left[4];
          load_squares_transposed(left, pixel + (tap / side * halo.width + tap % side) * 4);
          multiply(tap, left, right);
        }
      }
    }
  }

  // What belongs to an output lies in shared memory as in dw: channel by channel its taps.
  constexpr int taps = side * side, some = gradient_outputs, line = gradient_line<T, side>;
  auto* const sums = reinterpret_cast<S*>(shared);
  const int first_channel = slice * T::stage, rest = map.channels - first_channel,
            width = (rest < T::stage ? rest : T::stage) * taps;
  parts += static_cast<Index>(blockIdx.z) * map.depth() * map.out_channels + first_channel * taps;
  for (int begin = 0; begin < T::columns; begin += some) {
    __syncthreads();
    if (output / some * some == begin) {
#pragma unroll
      for (int tap = 0; tap < taps; ++tap)
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int k = 0; k < 4; ++k)
            sums[(output - begin + 8 * j + lane % 4 * 2 + k % 2) * line +
                 (channel + lane / 4 + k / 2 * 8) * taps + tap] = sum[tap][j][k];
    }
    __syncthreads();
    for (int o = warp; o < some && first_output + begin + o < map.out_channels; o += T::warps)
      for (int i = lane; i < width; i += warp_threads)
        parts[static_cast<Index>(first_output + begin + o) * map.depth() + i] = sums[o * line + i];
  }
}

}  // namespace deq::cuda
