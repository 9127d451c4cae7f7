// SPDX-License-Identifier: MIT
// The convolutions and matrix products of the CUDA backend against those of the CPU, in every
// precision, and what the host plans for them.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <set>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cpu/kernels.hpp>
#include <deq/backend/cuda/kernels.cuh>

#include "support/images.hpp"
#include "support/maps.hpp"
#include "support/two_backends.hpp"

using namespace deq;
using namespace deq_test;

namespace {

using CudaTf32 = Cuda<float, cuda::Tf32>;
using CudaBf16 = Cuda<float, cuda::Bf16>;
#define DEQ_PRECISIONS Cuda<double>, Cuda<float>, CudaTf32, CudaBf16

/// While it lives, the emulated device has so many processors, for which the work of a test may be
/// much; a device has what it has.
#ifdef __CUDACC__
struct Processors {
  explicit Processors(int) {}
  ~Processors() {}
};
#else
class Processors {
 public:
  explicit Processors(int n) : before_(std::exchange(deq_emulation::runtime.processors, n)) {}
  ~Processors() { deq_emulation::runtime.processors = before_; }
  Processors(const Processors&) = delete;
  Processors& operator=(const Processors&) = delete;

 private:
  int before_;
};
#endif

/// What a sum of `terms` products of numbers up to 1, which are exact, may be off by.
template <class B>
double tolerance(Index terms) {
  return 4 * std::numeric_limits<typename B::Scalar>::epsilon() * static_cast<double>(terms + 1);
}
/// The same for what B stores as an image.
template <class B>
double image_tolerance(Index terms) {
  return tolerance<B>(terms) + (std::is_same_v<B, CudaBf16> ? 0x1p-8 : 0);
}

/// Channels in fours and not, several slices of them, halos of parts of a sample, of several
/// samples and of samples that tiles cut anywhere, squares of pixels, one, two and more of a
/// sample, images too wide for a halo, tiles that are full and not, wide ones, strides, 1 x 1, many
/// samples a tile, sums in parts.
const std::vector<Conv2dGeometry> geometries{
    {2, 24, 8, 8, 24, 3, 3, 1, 1},  {3, 3, 5, 7, 10, 3, 3, 1, 1},
    {2, 8, 9, 9, 40, 3, 3, 2, 1},   {2, 32, 4, 4, 70, 1, 1, 1, 0},
    {1, 5, 6, 6, 6, 3, 3, 2, 1},    {1, 12, 12, 11, 33, 3, 3, 1, 1},
    {3, 16, 2, 2, 8, 3, 3, 1, 1},   {1, 64, 6, 6, 128, 3, 3, 2, 1},
    {2, 7, 3, 3, 5, 2, 2, 1, 0},    {3, 40, 9, 9, 24, 3, 3, 1, 1},
    {9, 72, 4, 4, 68, 3, 3, 1, 1},  {1, 36, 7, 32, 20, 3, 3, 1, 1},
    {2, 18, 7, 8, 18, 3, 3, 1, 0},  {5, 20, 8, 8, 24, 3, 3, 2, 1},
    {1, 16, 3, 200, 9, 3, 3, 1, 1}, {1, 24, 16, 16, 40, 3, 3, 1, 1},
    {1, 24, 8, 16, 33, 3, 3, 1, 1}, {1, 40, 8, 8, 160, 3, 3, 1, 1},
    {1, 16, 4, 4, 160, 1, 1, 1, 0}, {2, 160, 4, 4, 24, 3, 3, 1, 1},
    {1, 328, 4, 4, 8, 3, 3, 1, 1},
};

}  // namespace

TEST_CASE_TEMPLATE("A convolution and its gradients", B, DEQ_PRECISIONS) {
  using S = typename B::Scalar;
  for (const Conv2dGeometry& g : geometries) {
    CAPTURE(g.in_channels);
    CAPTURE(g.height);
    CAPTURE(g.out_channels);
    const Index in = g.samples * g.in_channels * g.in_pixels(),
                out = g.samples * g.out_channels * g.out_pixels(),
                size = g.out_channels * g.patch();
    for (const bool rich : {false, true}) {
      CAPTURE(rich);
      both<B>({random(in, 1), random(size, 2), random(g.out_channels, 3),
               random(g.samples * g.out_channels, 4), random(out, 5)},
              {out}, tolerance<B>(g.patch()), [&](auto backend, auto x, auto y) {
                const auto packed = scratch(backend, nhwc_packed_size(backend, g, false));
                nhwc_pack(backend, g, false, x[1], packed.data());
                NhwcConvParts<S> parts;
                if (rich) parts = {x[2], x[3], x[4]};
                nhwc_conv2d(backend, g, x[0], packed.data(), parts, y[0]);
              });
      both<B>({random(size, 2), random(out, 5), random(in, 6)}, {in},
              tolerance<B>(g.out_channels * g.kernel_size()), [&](auto backend, auto x, auto y) {
                const auto packed = scratch(backend, nhwc_packed_size(backend, g, true));
                nhwc_pack(backend, g, true, x[0], packed.data());
                if (rich) copy(backend, x[2], y[0], in);
                nhwc_conv2d_vjp_input(backend, g, packed.data(), x[1], y[0], rich);
              });
      both<B>({random(in, 1), random(out, 5), random(size, 7)}, {size},
              tolerance<B>(g.samples * g.out_pixels()), [&](auto backend, auto x, auto y) {
                if (rich) copy(backend, x[2], y[0], size);
                nhwc_conv2d_vjp_weight(backend, g, x[0], x[1], y[0], rich);
              });
    }
  }
}

TEST_CASE("A convolution rounds what it multiplies to the nearest bfloat16") {
  using B = CudaBf16;
  for (const Conv2dGeometry& g : geometries) {
    CAPTURE(g.in_channels);
    CAPTURE(g.height);
    CAPTURE(g.out_channels);
    const Index in = g.samples * g.in_channels * g.in_pixels(),
                out = g.samples * g.out_channels * g.out_pixels(),
                size = g.out_channels * g.patch();
    const auto convolve = [&](const std::vector<std::vector<double>>& numbers) {
      return run<B>(numbers, {out, in, size}, [&](auto backend, auto x, auto y) {
        const auto packed = scratch(backend, nhwc_packed_size(backend, g, false)),
                   back = scratch(backend, nhwc_packed_size(backend, g, true));
        nhwc_pack(backend, g, false, x[1], packed.data());
        nhwc_conv2d(backend, g, x[0], packed.data(), {}, y[0]);
        nhwc_pack(backend, g, true, x[1], back.data());
        nhwc_conv2d_vjp_input(backend, g, back.data(), x[2], y[1], false);
        nhwc_conv2d_vjp_weight(backend, g, x[0], x[2], y[2], false);
      });
    };
    std::vector<std::vector<double>> numbers{Noise(1).vector(in), Noise(2).vector(size),
                                             Noise(3).vector(out)};
    const auto got = convolve(numbers);
    for (auto& list : numbers) list = rounded_to_bfloat16(list);
    CHECK(got == convolve(numbers));
  }
}

TEST_CASE_TEMPLATE("Statistics taken while a convolution writes", B, DEQ_PRECISIONS) {
  using S = typename B::Scalar;
  for (const Conv2dGeometry& g : geometries)
    for (const bool shared : {false, true}) {
      NormGeometry n{g.samples, g.out_channels, g.out_pixels(), g.out_channels, shared};
      if (shared) n.channels_per_statistic = 1;
      if (!shared && g.out_channels % 2 == 0) n.channels_per_statistic = g.out_channels / 2;
      const Index in = g.samples * g.in_channels * g.in_pixels(),
                  out = g.samples * g.out_channels * g.out_pixels();
      const Index statistics = (shared ? 1 : g.samples) * n.groups();
      both<B>({random(in, 1), random(g.out_channels * g.patch(), 2), random(g.out_channels, 3)},
              {out, statistics, statistics, statistics}, 4 * tolerance<B>(g.patch()),
              [&](auto backend, auto x, auto y) {
                const auto packed = scratch(backend, nhwc_packed_size(backend, g, false));
                nhwc_pack(backend, g, false, x[1], packed.data());
                nhwc_conv2d_statistics(backend, g, n, x[0], packed.data(), {.bias = x[2]}, y[0],
                                       {S(0.1), y[1], y[2], y[3]});
              });
    }
}

TEST_CASE_TEMPLATE("A block takes several tiles of columns", B, DEQ_PRECISIONS) {
  const Processors one(1);
  for (const auto& [samples, channels, out_channels] : std::vector<std::array<Index, 3>>{
           {6, 16, 136}, {6, 32, 136}, {6, 72, 136}, {8, 16, 320}}) {  // one slice or two, several
    const Conv2dGeometry g{samples, channels, 8, 8, out_channels, 3, 3, 1, 1};
    const cuda::TilePlan plan(g.samples * g.out_pixels(), g.out_channels, cuda::processors(), 128,
                              std::is_same_v<B, CudaBf16>);
    if (cuda::processors() == 1) CHECK(plan.tiles_a_block(1) >= 2);
    const NormGeometry n{g.samples, g.out_channels, g.out_pixels(), g.out_channels};
    const Index in = g.samples * g.in_channels * g.in_pixels(),
                out = g.samples * g.out_channels * g.out_pixels();
    const double moments = 4 * tolerance<B>(g.patch());
    both<B>({random(in, 1), random(g.out_channels * g.patch(), 2)},
            {out, g.samples, g.samples, g.samples},
            {image_tolerance<B>(g.patch()), moments, moments, moments},
            [&](auto backend, auto x, auto y) {
              using Images = Image<decltype(backend)>;
              const auto packed = scratch(backend, nhwc_packed_size(backend, g, false));
              nhwc_pack(backend, g, false, x[1], packed.data());
              const Images images(x[0], in), u(out);
              nhwc_conv2d_statistics(backend, g, n, images.data(), packed.data(), {}, u.data(),
                                     {0, y[1], y[2], y[3]});
              u.copy_to(y[0]);
            });
  }
}

TEST_CASE("Convolutions of images stored as bfloat16, and their gradients") {
  using B = CudaBf16;
  for (const Conv2dGeometry& g : geometries) {
    CAPTURE(g.in_channels);
    CAPTURE(g.height);
    CAPTURE(g.out_channels);
    const Index in = g.samples * g.in_channels * g.in_pixels(),
                out = g.samples * g.out_channels * g.out_pixels(),
                size = g.out_channels * g.patch();
    const NormGeometry n{g.samples, g.out_channels, g.out_pixels(), g.out_channels};
    // The means of roundings that are independent.
    const double moments =
        4 * tolerance<B>(g.patch()) + 0x1p-6 / std::sqrt(static_cast<double>(out / g.samples));
    for (const bool rich : {false, true}) {
      CAPTURE(rich);
      both<B>({random(in, 1), random(size, 2), random(g.out_channels, 3),
               random(g.samples * g.out_channels, 4), random(out, 5)},
              {out, g.samples, g.samples, g.samples},
              {image_tolerance<B>(g.patch()), moments, moments, moments},
              [&](auto backend, auto x, auto y) {
                using Images = Image<decltype(backend)>;
                const auto packed = scratch(backend, nhwc_packed_size(backend, g, false));
                nhwc_pack(backend, g, false, x[1], packed.data());
                const Images images(x[0], in), addend(x[4], out), u(out);
                if (rich)
                  nhwc_conv2d_statistics(backend, g, n, images.data(), packed.data(),
                                         {x[2], x[3], addend.data()}, u.data(),
                                         {0.1f, y[1], y[2], y[3]});
                else
                  nhwc_conv2d_statistics(backend, g, n, images.data(), packed.data(), {}, u.data(),
                                         {0.1f, y[1], y[2], y[3]});
                u.copy_to(y[0]);
              });
      both<B>({random(size, 2), random(out, 5), random(in, 6)}, {in},
              image_tolerance<B>(g.out_channels * g.kernel_size()),
              [&](auto backend, auto x, auto y) {
                using Images = Image<decltype(backend)>;
                const auto packed = scratch(backend, nhwc_packed_size(backend, g, true));
                nhwc_pack(backend, g, true, x[0], packed.data());
                const Images dy(x[1], out), dx(x[2], in);
                nhwc_conv2d_vjp_input(backend, g, packed.data(), dy.data(), dx.data(), rich);
                dx.copy_to(y[0]);
              });
      both<B>({random(in, 1), random(out, 5), random(size, 7)}, {size},
              tolerance<B>(g.samples * g.out_pixels()), [&](auto backend, auto x, auto y) {
                using Images = Image<decltype(backend)>;
                if (rich) copy(backend, x[2], y[0], size);
                const Images images(x[0], in), dy(x[1], out);
                nhwc_conv2d_vjp_weight(backend, g, images.data(), dy.data(), y[0], rich);
              });
    }
  }
}

TEST_CASE_TEMPLATE("A convolution of NCHW images and its gradients", B, DEQ_PRECISIONS) {
  for (const Conv2dGeometry& g : geometries) {
    const Index in = g.samples * g.in_channels * g.in_pixels(),
                out = g.samples * g.out_channels * g.out_pixels(),
                size = g.out_channels * g.patch();
    both<B>({random(in, 1), random(size, 2), random(g.out_channels, 3), random(out, 4)},
            {out, in, size}, tolerance<B>(std::max(g.samples * g.out_pixels(), g.patch() * 8)),
            [&](auto backend, auto x, auto y) {
              conv2d_forward(backend, g, x[0], x[1], x[2], y[0]);
              conv2d_vjp_input(backend, g, x[1], x[3], y[1], false);
              conv2d_vjp_weight(backend, g, x[0], x[3], y[2], false);
            });
  }
}

TEST_CASE_TEMPLATE("Products of matrices", B, DEQ_PRECISIONS) {
  for (const auto& [m, n, k] : std::vector<std::array<Index, 3>>{{1, 1, 1},
                                                                 {5, 7, 3},
                                                                 {70, 33, 40},
                                                                 {130, 65, 17},
                                                                 {3, 200, 129},
                                                                 {64, 10, 0},
                                                                 {5, 10, 700}})
    for (int variant = 0; variant < 8; ++variant) {
      const GemmGeometry g{m, n, k, (variant & 1) != 0, (variant & 2) != 0};
      const bool accumulate = (variant & 4) != 0;
      both<B>({random(m * k, 1), random(k * n, 2), random(m * n, 3)}, {m * n}, tolerance<B>(k + 1),
              [&, size = m * n](auto backend, auto x, auto y) {
                if (accumulate) copy(backend, x[2], y[0], size);
                gemm(backend, g, x[0], x[1], y[0], accumulate);
              });
      if (g.transpose_a) continue;
      both<B>({random(m * k, 1), random(k * n, 2), random(m * n, 3)}, {m * n}, tolerance<B>(k + 1),
              [&](auto backend, auto x, auto y) {
                const auto packed = scratch(backend, gemm_packed_size(backend, g.n, g.k));
                gemm_pack(backend, g.n, g.k, g.transpose_b, x[1], packed.data());
                if (accumulate) copy(backend, x[2], y[0], g.m * g.n);
                gemm_packed(backend, g.m, g.n, g.k, x[0], packed.data(), y[0], accumulate);
              });
    }
}

TEST_CASE_TEMPLATE("A sample's bits do not depend on the batch", B, DEQ_PRECISIONS) {
  using S = typename B::Scalar;
  for (Conv2dGeometry g :
       {Conv2dGeometry{7, 24, 8, 8, 40, 3, 3, 1, 1}, Conv2dGeometry{7, 24, 4, 5, 72, 3, 3, 1, 1},
        Conv2dGeometry{7, 328, 4, 4, 8, 3, 3, 1, 1}}) {
    const Index in = g.in_channels * g.in_pixels(), out = g.out_channels * g.out_pixels();
    // The image, its statistics: all that a batch of so many samples has.
    const auto convolve = [&](Index first, Index samples) {
      g.samples = samples;
      const NormGeometry n{samples, g.out_channels, g.out_pixels(), g.out_channels};
      return run<B>({random(7 * in, 1), random(g.out_channels * g.patch(), 2)},
                    {samples * out, samples, samples, samples}, [&](auto backend, auto x, auto y) {
                      const auto packed = scratch(backend, nhwc_packed_size(backend, g, false));
                      nhwc_pack(backend, g, false, x[1], packed.data());
                      nhwc_conv2d_statistics(backend, g, n, x[0] + first * in, packed.data(), {},
                                             y[0], {S(0.1), y[1], y[2], y[3]});
                    });
    };
    for (const int processors : {132, 1}) {  // low tiles, high ones
      const auto all = [&] {
        const Processors few(processors);
        return convolve(0, 7);
      }();
      for (const Index s : {Index{0}, Index{6}}) {
        const auto alone = convolve(s, 1);
        CHECK(same_bits(alone[0].data(), all[0].data() + s * out, out));
        for (std::size_t i = 1; i < 4; ++i) CHECK(same_bits(alone[i].data(), all[i].data() + s, 1));
      }
    }
  }
}

TEST_CASE("An image map finds the numbers that a convolution reads, and its transpose finds back") {
  using Axis = cuda::ImageMap::Axis;
  for (const Index kernel : {1, 2, 3, 5})
    for (const Index stride : {1, 2, 3})
      for (const Index padding : {0, 1, 2})
        for (const Index in : {5, 6, 7, 8}) {
          if (in + 2 * padding < kernel) continue;
          const Index out = (in + 2 * padding - kernel) / stride + 1;
          const Axis forward = Axis::forward(in, out, kernel, stride, padding);
          // reads[i][t] of the convolution, and of the transpose, phase by phase.
          std::set<std::array<Index, 3>> reads, back;  // output, input, tap of the weight
          for (int i = 0; i < forward.out; ++i)
            for (int t = 0; t < forward.taps; ++t)
              if (forward.inside(forward.origin(i) + t))
                reads.insert({i, forward.origin(i) + t, t});
          std::vector<int> written(static_cast<std::size_t>(in));
          for (Index phase = 0; phase < stride; ++phase) {
            const Axis axis = Axis::transposed(out, in, kernel, stride, padding, phase);
            for (int i = 0; i < axis.out; ++i) {
              const int place = i * axis.out_step + axis.out_first;
              ++written.at(static_cast<std::size_t>(place));
              for (int t = 0; t < axis.taps; ++t)
                if (axis.inside(axis.origin(i) + t))
                  back.insert({axis.origin(i) + t, place, t * axis.tap_step + axis.tap_first});
            }
          }
          CHECK(reads == back);
          CHECK(written == std::vector<int>(static_cast<std::size_t>(in), 1));
        }
}

TEST_CASE("Segments hold the pixels of one sample, every pixel once") {
  for (const int pixels : {1, 15, 16, 17, 31, 32, 33, 64, 100, 1024}) {
    const cuda::Segments segments(pixels);
    CHECK((segments.rows == 16 || segments.rows == 32 || segments.rows == 64));
    constexpr Index samples = 3;
    std::vector<int> seen(static_cast<std::size_t>(samples * pixels));
    bool one_sample = true;
    for (Index i = 0; i < segments.rows_of(samples); ++i) {
      const auto row = segments.row(i), first = segments.row(i - i % segments.rows);
      one_sample = one_sample && row.sample == first.sample;
      if (row.pixel < pixels) ++seen[static_cast<std::size_t>(row.sample * pixels + row.pixel)];
    }
    CHECK(one_sample);
    CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }));
  }
}

TEST_CASE("A divisor divides") {
  constexpr int most = std::numeric_limits<int>::max();
  for (const int d : {1, 2, 3, 5, 7, 16, 17, 31, 34, 641, 1000, 65535, 1 << 30, most - 1, most}) {
    const cuda::Divisor divisor(d);
    bool right = true;
    const auto check = [&](Index n) {
      if (n < 0 || n > most) return;
      const int i = static_cast<int>(n);
      right = right && divisor.quotient(i) == i / d && divisor.remainder(i) == i % d;
    };
    for (Index n = 0; n < 2000; ++n) {
      check(n);
      check(most - n);
      for (const Index off : {-1, 0, 1}) check(n * d + off);
      for (const Index off : {-1, 0, 1}) check((most / d - n) * d + off);
    }
    CHECK(right);
  }
}

TEST_CASE("A halo is what the taps of a tile see, where it finds room") {
  const auto map = [](Index channels, Index height, Index width, Index kernel, Index stride) {
    return cuda::ImageMap({100, channels, height, width, 8, kernel, kernel, stride, kernel / 2},
                          false);
  };
  struct Case {
    cuda::ImageMap map;
    int rows, samples, height, width;
  };
  for (const Case& c :
       {Case{map(32, 32, 32, 3, 1), 128, 1, 10, 18},  // two squares of an image
        Case{map(32, 8, 8, 3, 1), 128, 2, 10, 10},    // two images
        Case{map(32, 4, 4, 3, 1), 128, 8, 6, 6},
        Case{map(32, 32, 32, 3, 2), 64, 1, 9, 33},  // in 128 rows there were 561
        Case{map(32, 9, 9, 3, 1), 128, 3, 11, 11},  // cut anywhere
        Case{map(32, 5, 24, 3, 1), 128, 1, 7, 26}, Case{map(32, 16, 16, 1, 1), 128, 1, 8, 16}}) {
    CAPTURE(c.width);
    CHECK(cuda::Halo::rows(c.map) == c.rows);
    const cuda::Halo halo(c.map, c.rows);
    CHECK(halo.samples == c.samples);
    CHECK(halo.height == c.height);
    CHECK(halo.width == c.width);
    CHECK(halo.fits());
    for (const int distance : {1, 64, halo.of_sample() + halo.width + 1}) {
      if (distance >= halo.pixels()) continue;
      bool same = true;
      for (int pixel = 0; pixel + distance < halo.pixels(); ++pixel) {
        const auto at = halo.after(halo.place(pixel), halo.place(distance)),
                   there = halo.place(pixel + distance);
        same &= at.sample == there.sample && at.line == there.line && at.column == there.column;
      }
      CHECK(same);
    }
  }
  CHECK(cuda::Halo::rows(map(32, 3, 1000, 3, 1)) == 0);
  CHECK(cuda::Halo::rows(map(3, 8, 8, 3, 1)) == 0);  // too few channels
}

TEST_CASE("Tiles cover the product, and are small where large ones would be few") {
  for (const Index rows : {1, 63, 64, 65, 2048, 131072})
    for (const Index columns : {1, 24, 32, 33, 64, 65, 160, 256, 1000})
      for (const auto& [processors, may_be_wide] :
           {std::pair<Index, bool>{1, false}, {1, true}, {132, false}, {132, true}}) {
        const cuda::TilePlan plan(rows, columns, processors, 128, may_be_wide);
        CHECK((plan.columns == cuda::TilePlan::wide) == (may_be_wide && columns == 160));
        CHECK(plan.row_tiles * plan.rows >= rows);
        CHECK((plan.row_tiles - 1) * plan.rows < rows);
        CHECK(plan.column_tiles * plan.columns >= columns);
        CHECK((plan.column_tiles - 1) * plan.columns < columns);
        constexpr Index multiple = cuda::PackedWeight::column_multiple;
        CHECK(plan.column_tiles * plan.columns <= (columns + multiple - 1) / multiple * multiple);
        if (plan.rows == 64) CHECK(2 * ((rows + 127) / 128) * plan.column_tiles < processors);
        const Index a_block = plan.tiles_a_block(processors),
                    groups = (plan.column_tiles + a_block - 1) / a_block;
        CHECK(a_block >= 1);
        CHECK(a_block <= plan.column_tiles);
        if (a_block > 1) CHECK(plan.row_tiles * groups >= 4 * processors);
      }
}

TEST_CASE("What a thread has of the columns of a product are neighbouring channels") {
  for (const int group : {0, 32})
    for (int thread = 0; thread < 4; ++thread)
      for (int i = 0; i < 8; ++i) {  // in the order in which it has them
        const int column = group + i / 2 * 8 + thread * 2 + i % 2;
        CHECK(cuda::channel_of_column(column) == group + thread * 8 + i);
      }
}

TEST_CASE("Pixels in squares are those of the image, each once") {
  struct Case {
    Index height, width, stride;
    bool in_squares;
  };
  for (const Case& c :
       {Case{8, 8, 1, true}, Case{16, 32, 1, true}, Case{8, 16, 1, true}, Case{8, 24, 1, false},
        Case{16, 8, 1, false}, Case{32, 32, 2, false}, Case{9, 16, 1, false}}) {
    const cuda::ImageMap map({2, 32, c.height, c.width, 8, 3, 3, c.stride, 1}, false);
    CAPTURE(c.height);
    CAPTURE(c.width);
    CHECK(map.in_squares == c.in_squares);
    std::set<int> places;
    for (int p = 0; p < map.pixels(); ++p) {
      const cuda::ImageMap::Pixel at = map.pixel(p), first = map.pixel(p / 8 * 8);
      if (c.in_squares) CHECK((at.line == first.line && at.column == first.column + p % 8));
      places.insert(map.place(p));
    }
    CHECK(static_cast<int>(places.size()) == map.pixels());
    CHECK(*places.begin() == 0);
    CHECK(*places.rbegin() == map.pixels() - 1);
  }
}

TEST_CASE("A packed weight has one place for every number, and no other") {
  for (const Conv2dGeometry& g : geometries)
    for (const bool transposed : {false, true})
      for (const int numbers : {1, 2}) {
        CAPTURE(g.in_channels);
        CAPTURE(transposed);
        CAPTURE(numbers);
        Index words = 0;
        bool once = true;
        for (int phase = 0; phase < cuda::ImageMap::phases(g, transposed); ++phase) {
          const cuda::ImageMap map(g, transposed, phase);
          const cuda::PackedWeight weight(map, numbers);
          const int taps = map.y.taps * map.x.taps;
          std::vector<int> seen(static_cast<std::size_t>(map.out_channels * map.depth()));
          for (int i = 0; i < static_cast<int>(weight.words()); ++i) {
            const auto at = weight.place(i, taps);
            for (int d = 0; d < numbers; ++d) {
              // As pack_weight has it, a word may begin at the end of a tap.
              const int tap = at.tap + (at.channel + d) / static_cast<int>(weight.channels),
                        c = (at.channel + d) % static_cast<int>(weight.channels);
              if (tap < taps && c < map.channels && at.output < map.out_channels)
                ++seen.at(static_cast<std::size_t>((at.output * taps + tap) * map.channels + c));
            }
          }
          once = once && seen == std::vector<int>(seen.size(), 1);
          words += weight.words();
        }
        CHECK(once);
        CHECK(cuda::PackedWeight::words(g, transposed, numbers) == words);
      }
}

TEST_CASE("The sum of a convolution is cut by its geometry alone, where pixels are few") {
  struct Case {
    Index channels, side, out_channels, kernel, stride, parts;
  };
  for (const Case& c :
       {Case{1280, 4, 256, 3, 1, 4}, Case{640, 8, 128, 3, 1, 2}, Case{320, 16, 64, 3, 1, 1},
        Case{160, 32, 32, 3, 1, 1}, Case{256, 4, 1280, 3, 1, 1}, Case{256, 4, 256, 1, 1, 1},
        Case{1280, 200, 256, 3, 1, 1}})
    for (const Index samples : {1, 128, 1000}) {
      const cuda::ImageMap map({samples, c.channels, c.side, c.side, c.out_channels, c.kernel,
                                c.kernel, c.stride, c.kernel / 2},
                               false);
      CAPTURE(c.channels);
      CHECK(cuda::parts_of_slices(map, cuda::PackedWeight(map, 2)).parts == c.parts);
    }
}

TEST_CASE("A long sum is cut into parts of whole blocks that make it up") {
  for (const Index terms : {0, 1, 511, 512, 513, 32768, 131072})
    for (const Index tiles : {1, 5, 72, 1000}) {
      const cuda::SumPlan plan = cuda::SumPlan::of_tiles(terms, tiles, 132, 512);
      CHECK(plan.parts >= 1);
      CHECK(plan.terms_a_part % 512 == 0);
      CHECK(plan.parts * plan.terms_a_part >= terms);
      CHECK((plan.parts - 1) * plan.terms_a_part < std::max<Index>(terms, 1));
      CHECK((plan.parts == 1 || (plan.parts - 1) * tiles <= 2 * 132));
    }
}
