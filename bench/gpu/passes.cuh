// SPDX-License-Identifier: MIT
// What only moves numbers: norms, changes of layout and size, the vectors of a solver, Adam.
#pragma once

#include <deq/backend/everybody.hpp>
#include <deq/model/mdeq.hpp>
#include <deq/nn/adam.hpp>

#include "data.cuh"
#include "options.hpp"
#include "report.cuh"

namespace gpu_bench {

/// What moves numbers and hardly computes: the floor is the memory's.
inline void passes(const Options& o, Report& report) {
  using Numbers = deq::Tensor<Plain>;
  const MdeqConfig c = MdeqConfig::large();
  const auto measure = [&](const std::string& name, double numbers,
                           const std::function<void()>& work) {
    try {
      report.add("passes/" + name, recorded_seconds(o.seconds, work), 0, float_bytes * numbers,
                 "strict");
    } catch (const deq::Error& error) {
      report.failed("passes/" + name, error.what());
    }
  };
  const Index batch = o.batch, side = c.resolution(0), wide = c.expansion * c.channels_of(0);
  {
    // The widest image of f, between the two convolutions of the first residual block.
    const Shape shape{batch, side, side, wide};
    const Numbers u = repeated_normal<Plain>(shape, 1), y = repeated_normal<Plain>(shape, 2),
                  h = repeated_normal<Plain>(shape, 3), du(shape);
    const Numbers mean({batch, c.groups});
    const Numbers inverse({batch, c.groups}, 1.f), weight({wide}, 1.f), bias({wide}, 0.f);
    const Numbers sums({batch, wide}), sums_du({batch, wide});
    const deq::NormGeometry n{batch, wide, side * side, wide / c.groups};
    const deq::NhwcNorm<float> norm{n,           mean.data(), inverse.data(), weight.data(),
                                    bias.data(), true};
    const auto size = static_cast<double>(u.size());
    const float* const none = nullptr;
    measure("statistics", size, [&] {
      nhwc_statistics(Plain{}, n, u.data(),
                      deq::NormStatistics<float>{1e-5f, mean.data(), nullptr, inverse.data()});
    });
    measure("normalize_relu", 2 * size,
            [&] { nhwc_normalize(Plain{}, norm, u.data(), none, du.data()); });
    measure("normalize_residual_relu", 3 * size,
            [&] { nhwc_normalize(Plain{}, norm, u.data(), h.data(), du.data()); });
    // Where it was rectified shows in u: there is no residual.
    measure("normalize_vjp_sums", 2 * size, [&] {
      nhwc_normalize_vjp_sums(Plain{}, norm, u.data(), none, h.data(), sums.data(), sums_du.data());
    });
    measure("normalize_vjp", 3 * size, [&] {
      nhwc_normalize_vjp(Plain{}, norm, u.data(), none, h.data(), sums.data(), sums_du.data(), none,
                         {}, {}, du.data());
    });
    const auto plus = std::plus<float>{};
    measure("elementwise_add", 3 * size,
            [&] { elementwise(Plain{}, u.size(), plus, du.data(), u.data(), y.data()); });
  }
  {
    const Index narrow = c.channels_of(0);
    const Numbers large = repeated_normal<Plain>({batch, side, side, narrow}, 1),
                  small = repeated_normal<Plain>({batch, side / 2, side / 2, narrow}, 2),
                  y(large.shape());
    const deq::NhwcSmallImage<float> one{{batch, side / 2, side / 2, narrow, 2}, small.data()};
    measure("upsample_add", 2.25 * static_cast<double>(large.size()),
            [&] { nhwc_upsample_add(Plain{}, std::span(&one, 1), large.data(), false, y.data()); });
    measure("transpose", 2 * static_cast<double>(large.size()), [&] {
      nhwc_transpose(Plain{}, batch, narrow, side * side, large.data(), y.data(), false);
    });
  }
  {
    const Index dim = c.state_size();
    const Numbers f = repeated_normal<Plain>({batch, dim}, 1),
                  z = repeated_normal<Plain>(f.shape(), 2), g(f.shape());
    const Numbers squared({batch}), f_squared({batch});
    deq::Everybody<Plain> everybody;
    const deq::Samples a = everybody(batch);
    const auto size = static_cast<double>(f.size());
    // Between two evaluations of f in Broyden's first iteration, nothing stored, and in its last,
    // all steps but the last stored. The best iterate so far is put aside.
    const auto broyden = [&]<class Stored>(const std::string& name, Index stored, Stored) {
      const Index capacity = stored + 1;
      const double of_basis = static_cast<double>(stored * sizeof(Stored)) / float_bytes,
                   kept = sizeof(Stored) / float_bytes;
      deq::Array<Plain, Stored> basis;
      const deq::BasisView<Stored> h = basis.basis(dim, capacity, batch);
      const std::vector<Stored> vectors(static_cast<std::size_t>(dim * capacity), Stored(0.1f));
      for (Index s = 0; s < batch; ++s)
        Plain::upload_bytes(h.vec(s, 0), vectors.data(), vectors.size() * sizeof(Stored));
      const Numbers out({batch, capacity}), coefficient({batch, capacity}, 0.f),
          scale({batch}, 1.f);
      deq::Array<Plain, Index> rank(batch);
      const std::vector<Index> ranks(static_cast<std::size_t>(batch), stored);
      Plain::upload_bytes(rank.data(), ranks.data(), ranks.size() * sizeof(Index));
      deq::Array<Plain, bool> improved(batch);
      const std::vector<char> yes(static_cast<std::size_t>(batch), 1);
      Plain::upload_bytes(improved.data(), yes.data(), yes.size());
      const deq::detail::AnySampleWork nothing;
      measure("broyden_residual" + name, (of_basis + 2) * size, [&] {
        Plain::residual(a, f.batch(), z.batch(), {}, squared.data(), f_squared.data(), h,
                        rank.data(), out.data(), nothing);
      });
      measure("broyden_step" + name, (of_basis + kept + 4) * size, [&] {
        Plain::step(a, h, rank.data(), coefficient.data(), scale.data(), f.batch(), rank.data(),
                    z.batch(), g.batch(), improved.data(), squared.data(), nothing);
      });
    };
    broyden("", forward_iterations, 0.f);
    broyden("_compact", forward_iterations, deq::Bfloat16());
    broyden("_first", 0, 0.f);
    measure("copy", 2 * size, [&] { Plain::copy(a, f.batch(), g.batch()); });
    measure("residual", 3 * size, [&] {
      Plain::residual(a, f.batch(), z.batch(), g.batch(), squared.data(), f_squared.data());
    });
  }
  {
    deq::Parameters<Plain> parameters;
    parameters.emplace_back("all", Shape{count_values(deq::Mdeq<Plain>(c).parameters())});
    deq::Adam<Plain> adam{std::span<const deq::Parameter<Plain>>(parameters)};
    adam.begin_step(0);
    measure("adam", 12 * static_cast<double>(parameters[0].value.size()),
            [&] { adam.apply(parameters); });
  }
}

}  // namespace gpu_bench
