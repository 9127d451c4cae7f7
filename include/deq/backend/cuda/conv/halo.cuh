// SPDX-License-Identifier: MIT
// A convolution whose tiles keep the pixels that all their taps share: of a slice of channels they
// are read, and rounded if they have to be, once, and every tap multiplies the same lines of shared
// memory from another one on.
#pragma once

#include <deq/backend/cuda/conv/operands.cuh>
#include <deq/backend/cuda/conv/part_sums.cuh>
#include <deq/backend/cuda/conv/warpgroup.cuh>
#include <deq/backend/cuda/conv/weights.cuh>

namespace deq::cuda {

/// The pixels of the halo of a tile, in each plane a quad of words each; slice by slice of the
/// channels.
template <class T, class X, int width>
class HaloPixels : public AlongSum<T, Halo::most> {
  using Word = typename T::Word;
  using Quads = AlongSum<T, Halo::most>;
  static constexpr int numbers = 4 * T::Arithmetic::numbers;  ///< of a thread and a pixel

 public:
  __device__ HaloPixels(const ImageMap& map, const Halo& halo, const Segments& segments,
                        RowSet samples, const X* x, Index first_row)
      : map_(map), halo_(halo), segments_(segments), first_row_(first_row) {
    const Segments::Row first = segments.row(first_row);
    sample_ = static_cast<int>(first.sample);
    if (halo.samples == 1) {
      const ImageMap::Pixel pixel = map.pixel(first.pixel);
      line_ = pixel.line * map.y.stride;
      if (map.in_squares) column_ = pixel.column * map.x.stride;
    }
    x_ = x + first.sample * map.in_pixels() * map.channels;
    Halo::Place at = halo.place(this->line(0));
    const Halo::Place a_round = halo.place(pixels_a_round);
#pragma unroll
    for (int q = 0; q < all_quads; ++q) {
      at_[q] = nowhere;
      if (nobody_has(q)) continue;
      const int line = at.line + line_ + map.y.start, column = at.column + column_ + map.x.start,
                sample = at.sample;
      at = halo.after(at, a_round);
      if (this->line(q) >= halo.pixels()) continue;
      const bool there = sample_ + sample < map.samples && samples.contains(sample_ + sample) &&
                         map.y.inside(line) && map.x.inside(column);
      at_[q] =
          there ? (sample * map.in_pixels() + line * map.x.in + column) * map.channels : outside;
    }
  }

  /// Where the numbers under the first tap of a row of the tile are in it.
  __device__ int place_of(int row) const {
    const Segments::Row at = segments_.row(first_row_ + row);
    if (at.pixel >= map_.pixels()) return 0;  // the sum is not read, or this is multiplied by 0
    const int sample = static_cast<int>(at.sample) - sample_;
    const ImageMap::Pixel pixel = map_.pixel(at.pixel);
    return (sample * halo_.of_sample() + (pixel.line * map_.y.stride - line_) * halo_.width +
            pixel.column * map_.x.stride - column_) *
           4;
  }

  // A slice on its way to shared memory while others are multiplied: begin, go_on and finish it.
  // What is stored as it is multiplied is copied behind the threads' backs. Other numbers are
  // rounded in registers; of large halos half of them are on their way at a time.
  static constexpr bool behind = std::is_same_v<X, Bfloat16> && width == best_pack<Bfloat16>;
  static_assert(!behind || numbers == width, "deq: a word is not what the image has stored");
  static constexpr int all_quads = (Halo::most * 4 + threads - 1) / threads,
                       quads = sizeof(X) < sizeof(typename T::S) ? all_quads : 4;
  struct Part {
    Numbers<X, numbers, width> quad[behind ? 1 : quads];
  };
  __device__ void begin(int slice, Word* to, Part& loaded) const {
    if constexpr (behind) {
      const int first = slice * T::stage + this->first();
      const bool channels_left = first < map_.channels;
      const X* const from = x_ + first;  // of what is outside nothing is read
      to += first_place();
#pragma unroll
      for (int q = 0; q < all_quads; ++q) {
        if (nobody_has(q)) break;
        if (at_[q] != nowhere)
          copy_behind_if(at_[q] >= 0 && channels_left, to + q * to_next_pixel, from + at_[q]);
      }
      close_copies();
    } else {
      load<0>(slice, loaded);
    }
  }
  __device__ void go_on(int slice, Word* to, Part& loaded) const {
    if constexpr (behind) return;
    if (!in_parts()) return;
    put<0>(loaded, to);
    load<1>(slice, loaded);
  }
  __device__ void finish(Word* to, const Part& loaded) const {
    if constexpr (behind)
      wait_for_copies<0>();
    else if (in_parts())
      put<1>(loaded, to);
    else
      put<0>(loaded, to);
  }

 private:
  __device__ bool in_parts() const { return halo_.pixels() > quads * threads / 4; }
  template <int part>
  __device__ void load(int slice, Part& loaded) const {
    const int first = slice * T::stage + this->first();
#pragma unroll
    for (int q = part * quads; q < all_quads && q < (part + 1) * quads; ++q)
#pragma unroll
      for (int i = 0; i < numbers; i += width) {
        const bool there = at_[q] >= 0 && first + i < map_.channels;
        loaded.quad[q - part * quads].pack[i / width] =
            load_if<width>(there, x_ + (at_[q] + first + i));
      }
  }
  template <int part>
  __device__ void put(const Part& loaded, Word* to) const {
    to += first_place();
#pragma unroll
    for (int q = part * quads; q < all_quads && q < (part + 1) * quads; ++q)
      if (at_[q] != nowhere)
        *reinterpret_cast<Quad<Word>*>(to + q * to_next_pixel) =
            Quads::words(loaded.quad[q - part * quads]);
  }
  /// Where this thread's words of its first pixel are in a slice, and how far it is to the next.
  __device__ int first_place() const {
    return this->line(0) * 4 + this->first() / T::Arithmetic::numbers / 4 * halo_.plane();
  }
  static constexpr int pixels_a_round = threads / 4, to_next_pixel = pixels_a_round * 4;
  __device__ bool nobody_has(int q) const { return q * pixels_a_round >= halo_.pixels(); }

  // Of a pixel of the halo: outside of the image, or not there. Addresses stay aligned.
  static constexpr int outside = -8, nowhere = -16;

  const ImageMap& map_;
  const Halo& halo_;
  const Segments& segments_;
  Index first_row_;
  int sample_;                 ///< the first of the tile
  int line_ = 0, column_ = 0;  ///< of the padded image, the first of the halo
  const X* x_;
  int at_[all_quads];
};

/// Shared memory: two slices of the halo, if there are two, and the weights.
template <class T, int taps>
std::size_t halo_bytes(const Halo& halo, int slices) {
  using Weights = WeightStages<T, taps>;
  const auto words =
      static_cast<std::size_t>(std::min(slices, 2) * halo.size() + Weights::count * Weights::size);
  return words * sizeof(typename T::Word);
}

/// Blocks that a processor is to have room for: more where no numbers wait in registers, and sums
/// are not many.
template <class T, class Pixels>
constexpr int halo_blocks() {
  if (!Pixels::behind || T::columns == TilePlan::wide) return 2;
  return T::rows == 64 ? 4 : 3;
}

/// Tiles of u = patches(x) W, of pixels blockIdx.x, by their epilogue. A pixel is read once a slice
/// of channels, for all taps. Multiplies `taps` taps of a line of the kernel between two barriers.
/// A block takes some tiles of columns one after the other, whose packed weights follow each other;
/// it fetches its pixels for each, unless they all find room. Of a sum that is cut into parts it
/// has `slices_a_part` of all `slices`, of one tile of columns, and leaves them in `parts`.
template <class T, int width, int taps, bool in_place, class X>
__global__ void __launch_bounds__(threads, (halo_blocks<T, HaloPixels<T, X, width>>()))
    halo_kernel(ImageMap map, Segments segments, Halo halo, RowSet samples, const X* x,
                const typename T::Word* packed, int all_slices, int slices_a_part,
                Index words_of_tile, int column_tiles, int tiles_a_block, typename T::S* parts,
                ConvEpilogue<typename T::S, X> epilogue) {
  using Word = typename T::Word;
  using Product = TileProduct<T, in_place>;
  using Stages = WeightStages<T, taps>;
  using Pixels = HaloPixels<T, X, width>;
  const Index first_row = static_cast<Index>(blockIdx.x) * T::rows;
  const int first_tile = static_cast<int>(blockIdx.y) * tiles_a_block,
            last_tile = first_tile + tiles_a_block < column_tiles ? first_tile + tiles_a_block
                                                                  : column_tiles;
  if (nobody(map, segments, samples, first_row, T::rows)) return;
  if (halo.samples == 1) samples = {};               // its only sample is wanted
  const int steps = map.y.taps * map.x.taps / taps;  // of a slice
  const int first_slice = static_cast<int>(blockIdx.z) * slices_a_part,
            left = all_slices - first_slice, slices = left < slices_a_part ? left : slices_a_part;
  const Pixels a(map, halo, segments, samples, x, first_row);
  Word *here = dynamic_shared<Word>() + Stages::count * Stages::size,
       *there = slices > 1 ? here + halo.size() : here;
  TileWeights<T, taps> weights(
      packed + first_tile * words_of_tile + first_slice * steps * Stages::size,
      (last_tile - first_tile) * slices * steps, dynamic_shared<Word>());

  typename Pixels::Part loaded;
  a.begin(first_slice, here, loaded);
  const typename Product::RowPlaces rows([&](int row) { return a.place_of(row); }, halo.plane(),
                                         halo.width * 4);
  a.go_on(first_slice, here, loaded);
  a.finish(here, loaded);
  Product::show_rows();
  for (int tile = first_tile; tile < last_tile; ++tile) {
    Product product;
    for (int slice = 0; slice < slices; ++slice) {
      // Two slices stay where they are.
      const bool last = slice + 1 == slices,
                 more = slices > 2 ? !last || tile + 1 < last_tile : !last && tile == first_tile;
      const int next = first_slice + (last ? 0 : slice + 1);
      const Word* under = here;  // the first tap of a step
      int column = 0;
      for (int step = 0; step < steps; ++step) {
        const auto b = weights.wait();
        product.wait();
        __syncthreads();
        weights.copy_next();
        if (more && step == 0) a.begin(next, there, loaded);
        product.template add_packed<taps>(under, rows, b);
        if (taps > 1 || ++column == map.x.taps) {  // several are a line of the kernel
          column = 0;
          under += (halo.width - map.x.taps + taps) * 4;
        } else {
          under += 4;
        }
        if (more && step == (steps - 1) / 2) a.go_on(next, there, loaded);
        if (more && step == steps - 1) {
          a.finish(there, loaded);
          Product::show_rows();
        }
      }
      Word* const before = here;
      here = there;
      there = before;
    }
    product.wait();
    if (parts) {
      const Index number = (static_cast<Index>(blockIdx.z) * gridDim.y + blockIdx.y) * gridDim.x;
      return put_part(product, parts + (number + blockIdx.x) * numbers_of_tile<T>());
    }
    write_tile<T>(map, segments, samples, first_row, tile * T::columns, epilogue, product);
  }
}

}  // namespace deq::cuda
