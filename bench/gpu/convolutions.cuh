// SPDX-License-Identifier: MIT
// Every shape of convolution that a model's f has, in three directions.
#pragma once

#include <string>
#include <vector>

#include <deq/model/mdeq_config.hpp>
#include <deq/tape/record.hpp>

#include "data.cuh"
#include "options.hpp"
#include "report.cuh"

namespace gpu_bench {

struct Convolution {
  std::string name;
  Conv2dGeometry geometry;
  Index groups = 8;
  double count = 0;  ///< in one application of f

  double flop() const {
    const Conv2dGeometry& g = geometry;
    return 2 * static_cast<double>(g.samples * g.out_pixels() * g.out_channels) *
           static_cast<double>(g.patch());
  }
  /// Both images, as they are stored, and the weight, once each; the same for every gradient.
  double bytes(const std::string& precision) const {
    const Conv2dGeometry& g = geometry;
    const Index images =
        g.samples * (g.in_pixels() * g.in_channels + g.out_pixels() * g.out_channels);
    return (precision == "bf16" ? 2 : float_bytes) * static_cast<double>(images) +
           float_bytes * static_cast<double>(g.out_channels * g.patch());
  }
};

/// Every shape of convolution in f, and how often it occurs. peer.py has the same list.
inline std::vector<Convolution> convolutions(const MdeqConfig& c, Index samples) {
  std::vector<Convolution> list;
  const auto add = [&](Index in, Index out, Index side, Index kernel, Index stride, Index groups) {
    const std::string name = std::to_string(in) + "_" + std::to_string(out) + "_at_" +
                             std::to_string(side) + "_k" + std::to_string(kernel) + "_s" +
                             std::to_string(stride);
    auto found = std::find_if(list.begin(), list.end(),
                              [&](const Convolution& v) { return v.name == name; });
    if (found == list.end())
      found = list.insert(
          list.end(),
          {name, {samples, in, side, side, out, kernel, kernel, stride, kernel / 2}, groups, 0});
    ++found->count;
  };
  for (Index i = 0; i < c.branches(); ++i) {
    const Index channels = c.channels_of(i), wide = c.expansion * channels;
    add(channels, wide, c.resolution(i), 3, 1, c.groups);
    add(wide, channels, c.resolution(i), 3, 1, c.groups);
  }
  for (Index i = 0; i < c.branches(); ++i)
    for (Index j = 0; j < i; ++j)
      for (Index q = j; q < i; ++q)
        add(c.channels_of(j), q + 1 == i ? c.channels_of(i) : c.channels_of(j), c.resolution(q), 3,
            2, c.groups);
  for (Index i = 0; i < c.branches(); ++i)
    for (Index j = i + 1; j < c.branches(); ++j)
      add(c.channels_of(j), c.channels_of(i), c.resolution(j), 1, 1, c.groups);
  for (Index i = 0; i < c.branches(); ++i)
    add(c.channels_of(i), c.channels_of(i), c.resolution(i), 1, 1, c.groups / 2);
  return list;
}

/// The sum of all convolutions of f: FLOP, and the floor.
struct Total {
  double flop = 0;
  std::optional<double> floor = 0;
};
inline Total total_of(const std::vector<Convolution>& list, const Machine& machine,
                      const std::string& precision) {
  Total total;
  for (const Convolution& v : list) {
    total.flop += v.count * v.flop();
    const auto one = machine.floor(v.flop(), v.bytes(precision), precision);
    total.floor = one && total.floor ? std::optional(*total.floor + v.count * *one) : std::nullopt;
  }
  return total;
}

template <class B>
void convolution(const Convolution& v, const std::string& prefix, const std::string& precision,
                 const Options& o, Report& report) {
  using Numbers = deq::Tensor<B>;
  const Conv2dGeometry& g = v.geometry;
  const Shape in{g.samples, g.height, g.width, g.in_channels},
      out{g.samples, g.out_height(), g.out_width(), g.out_channels};
  const Numbers x = deq::as_image(repeated_normal<B>(in, 1)),
                dy = deq::as_image(repeated_normal<B>(out, 2)), u = Numbers::image(out),
                dx = Numbers::image(in);
  const Numbers w =
      repeated_normal<B>({g.out_channels, g.in_channels, g.kernel_height, g.kernel_width}, 3);
  const Numbers dw(w.shape()), mean({g.samples, v.groups}), inverse({g.samples, v.groups});
  const Numbers packed({nhwc_packed_size(B{}, g, false)}),
      transposed({nhwc_packed_size(B{}, g, true)});
  nhwc_pack(B{}, g, false, w.data(), packed.data());
  nhwc_pack(B{}, g, true, w.data(), transposed.data());
  const deq::NormGeometry n{g.samples, g.out_channels, g.out_pixels(), g.out_channels / v.groups};

  const auto measure = [&](const char* what, const std::function<void()>& work) {
    const std::string name = prefix + "conv/" + v.name + "/" + what;
    try {
      report.add(name, recorded_seconds(o.seconds, work), v.flop(), v.bytes(precision), precision,
                 {{"count", v.count}});
    } catch (const deq::Error& error) {
      report.failed(name, error.what());
    }
  };
  measure("forward", [&] {
    nhwc_conv2d_statistics(B{}, g, n, x.image_data(), packed.data(), {}, u.image_data(),
                           deq::NormStatistics<float>{1e-5f, mean.data(), nullptr, inverse.data()});
  });
  measure("input_gradient", [&] {
    nhwc_conv2d_vjp_input(B{}, g, transposed.data(), dy.image_data(), dx.image_data(), false);
  });
  measure("weight_gradient", [&] {
    nhwc_conv2d_vjp_weight(B{}, g, x.image_data(), dy.image_data(), dw.data(), false);
  });
}

}  // namespace gpu_bench
