// SPDX-License-Identifier: MIT
// The kernels of backend/cuda against those of backend/cpu, on the same random numbers. Without a
// GPU they run in the emulation, in several orders of blocks and threads.
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/cuda/kernels.cuh>

#include "support/tensors.hpp"

using namespace deq;
using deq_test::same_bits;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

template <class S>
std::vector<S> random(Index n, std::uint64_t seed, double low = -1, double high = 1) {
  Random numbers(seed, Purpose::user);
  std::vector<S> x(at(n));
  for (S& xi : x) xi = static_cast<S>(numbers.uniform(low, high));
  return x;
}
/// An output that nobody has written yet.
template <class S>
std::vector<S> unset(Index n) {
  return std::vector<S>(at(n), std::numeric_limits<S>::quiet_NaN());
}
/// What an output is before a kernel adds to it, or overwrites it.
template <class S>
std::vector<S> before(Index n, bool accumulate) {
  return accumulate ? random<S>(n, 99) : unset<S>(n);
}
template <class S>
std::vector<S> optional(bool there, std::vector<S> x) {
  return there ? x : std::vector<S>{};
}

/// Host numbers in the memory of a backend; null if there are none.
template <class B, class T = typename B::Scalar>
class Uploaded {
 public:
  explicit Uploaded(const std::vector<T>& x) : array_(static_cast<Index>(x.size())) {
    B::upload_bytes(array_.data(), x.data(), x.size() * sizeof(T));
  }
  T* data() const { return array_.size() ? array_.data() : nullptr; }
  std::vector<T> now() const {
    std::vector<T> x(at(array_.size()));
    B::download_bytes(x.data(), array_.data(), x.size() * sizeof(T));
    return x;
  }

 private:
  Array<B, T> array_;
};

template <class S>
using Lists = std::vector<std::vector<S>>;

/// `out` after kernel(B{}, in, out), which gets pointers into the memory of B.
template <class B, class Kernel, class S = typename B::Scalar>
Lists<S> run(const Lists<S>& in, const Lists<S>& out, Kernel kernel) {
  std::vector<Uploaded<B>> from, to;
  std::vector<const S*> read;
  std::vector<S*> write;
  for (const auto& x : in) read.push_back(from.emplace_back(x).data());
  for (const auto& y : out) write.push_back(to.emplace_back(y).data());
  kernel(B{}, read, write);
  Lists<S> results;
  for (const auto& y : to) results.push_back(y.now());
  return results;
}

/// ||y - e|| <= tolerance ||e||; rounding grows with the number of terms of a sum.
template <class S>
void check_close(const Lists<S>& y, const Lists<S>& expected, Index terms) {
  const double tolerance =
      32 * std::numeric_limits<S>::epsilon() * std::sqrt(static_cast<double>(terms));
  for (std::size_t k = 0; k < y.size(); ++k) {
    CAPTURE(k);
    REQUIRE(y[k].size() == expected[k].size());
    double error = 0, scale = 0;  // sums of squares: a NaN stays in them
    for (std::size_t i = 0; i < y[k].size(); ++i) {
      const double e = static_cast<double>(expected[k][i]), d = static_cast<double>(y[k][i]) - e;
      error += d * d;
      scale += e * e;
    }
    CHECK(std::sqrt(error) <= tolerance * std::sqrt(scale));
  }
}

/// The kernel does the same on both backends, whatever the order of its threads.
template <class S, class Kernel>
void check(const Lists<S>& in, const Lists<S>& out, Index terms, Kernel kernel) {
  const auto y = run<Cuda<S>>(in, out, kernel);
  check_close(y, run<Cpu<S>>(in, out, kernel), terms);
#ifdef DEQ_CUDA_EMULATION
  for (const auto order : {deq_emulation::Order::backward, deq_emulation::Order::shuffled}) {
    deq_emulation::set_order(order);
    const auto again = run<Cuda<S>>(in, out, kernel);
    for (std::size_t k = 0; k < y.size(); ++k) CHECK(same_bits(y[k], again[k]));
  }
  deq_emulation::set_order(deq_emulation::Order::forward);
#endif
}
/// The same for a kernel(B{}, in, out, accumulate) with one output of `size` numbers.
template <class S, class Kernel>
void check_both_ways(const Lists<S>& in, Index size, Index terms, Kernel kernel) {
  for (const bool accumulate : {false, true}) {
    CAPTURE(accumulate);
    check<S>(in, {before<S>(size, accumulate)}, terms,
             [&](auto b, const auto& x, const auto& y) { kernel(b, x, y[0], accumulate); });
  }
}

}  // namespace

// --- Layout ------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("copy_strips", S, float, double) {
  for (const StripGeometry& g : {StripGeometry{3, 5, 7, 6},
                                 {70, 300, 300, 301},
                                 {1, 1, 1, 1},
                                 {0, 5, 5, 5},
                                 {3, 0, 2, 2},
                                 // By fours, in several blocks; a stride that forbids it.
                                 {2, 9000, 9004, 9000},
                                 {3, 8, 12, 10}})
    check_both_ways<S>({random<S>(g.count * g.from_stride, 1)}, g.count * g.to_stride, 1,
                       [&](auto b, const auto& x, S* y, bool accumulate) {
                         // What is between the strips stays as it is.
                         if (!accumulate) b.fill(y, g.count * g.to_stride, S(2));
                         copy_strips(b, g, x[0], y, accumulate);
                       });
}

TEST_CASE_TEMPLATE("broadcast_sum", S, float, double) {
  // A sum a thread, a block for each of a few, a block for a long one; sums of one number.
  for (const Shape& full : {Shape{5, 4}, {100, 7}, {70, 5000}, {2000, 3}})
    for (const bool over_rows : {true, false}) {
      const Index rows = full[0], columns = full[1];
      CAPTURE(rows);
      CAPTURE(over_rows);
      const Shape kept = over_rows ? Shape{columns} : Shape{rows, 1};
      check_both_ways<S>(
          {random<S>(full.size(), 1)}, kept.size(), over_rows ? rows : columns,
          [&](auto b, const auto& x, S* y, bool accumulate) {
            broadcast_sum(b, LoopNest<2>(full, {kept, full}), std::identity{}, y, accumulate, x[0]);
          });
    }
}

TEST_CASE_TEMPLATE("transpose_matrix, nhwc_transpose", S, float, double) {
  struct Extents {
    Index rows, columns;
  };
  for (const auto& [rows, columns] :
       {Extents{1, 1}, {5, 63}, {24, 9}, {70, 33}, {32, 64}, {0, 3}, {3, 0}}) {
    const Index size = rows * columns, height = rows, width = columns;
    CAPTURE(height);
    CAPTURE(width);
    check_both_ways<S>({random<S>(size, 1)}, size, 1,
                       [&](auto b, const auto& x, S* y, bool accumulate) {
                         transpose_matrix(b, height, width, x[0], y, accumulate);
                       });
    const Index samples = 3;
    check_both_ways<S>({random<S>(samples * size, 2)}, samples * size, 1,
                       [&](auto b, const auto& x, S* y, bool accumulate) {
                         nhwc_transpose(b, samples, height, width, x[0], y, accumulate);
                       });
  }
}

TEST_CASE_TEMPLATE("spread_pixels, collect_pixels", S, float, double) {
  for (const PoolGeometry& g :
       {PoolGeometry{15, 9, 7, 2}, {3, 1, 1, 4}, {2, 4, 5, 3}, {5, 3, 2, 1}, {0, 2, 2, 2}}) {
    const Index small = g.planes * g.height * g.width, area = g.factor * g.factor;
    check_both_ways<S>({random<S>(small, 1)}, small * area, 1,
                       [&](auto b, const auto& x, S* y, bool accumulate) {
                         spread_pixels(b, g, S(0.3), x[0], y, accumulate);
                       });
    check_both_ways<S>({random<S>(small * area, 2)}, small, area,
                       [&](auto b, const auto& x, S* y, bool accumulate) {
                         collect_pixels(b, g, S(0.3), x[0], y, accumulate);
                       });
  }
}

// --- Losses ------------------------------------------------------------------------------------

TEST_CASE_TEMPLATE("softmax and cross entropy", S, float, double) {
  struct Extents {
    Index rows, width;
  };
  for (const auto& extents : {Extents{3, 10}, {1, 1}, {70, 5}, {300, 33}, {9, 100}}) {
    const Index rows = extents.rows, width = extents.width, size = rows * width;
    CAPTURE(rows);
    CAPTURE(width);
    const auto x = random<S>(size, 1, -50, 50), dy = random<S>(size, 2);
    check<S>({x}, {unset<S>(size)}, width, [&](auto b, const auto& in, const auto& out) {
      log_softmax_forward(b, rows, width, in[0], out[0]);
    });
    const auto y = random<S>(size, 3, -3, 0);
    check_both_ways<S>({y, dy}, size, width, [&](auto b, const auto& in, S* dx, bool accumulate) {
      log_softmax_vjp(b, rows, width, in[0], in[1], dx, accumulate);
    });
    check_both_ways<S>({y, dy}, size, width, [&](auto b, const auto& in, S* dx, bool accumulate) {
      softmax_vjp(b, rows, width, in[0], in[1], dx, accumulate);
    });
    std::vector<Index> labels;
    for (Index n = 0; n < rows; ++n) labels.push_back((n * 7 + 3) % width);
    check<S>({y}, {unset<S>(1)}, rows, [&](auto b, const auto& in, const auto& out) {
      const Uploaded<decltype(b), Index> label(labels);
      cross_entropy_forward(b, rows, width, in[0], label.data(), out[0]);
    });
    check_both_ways<S>({y, {S(0.7)}}, size, 1, [&](auto b, const auto& in, S* dx, bool accumulate) {
      const Uploaded<decltype(b), Index> label(labels);
      cross_entropy_vjp(b, rows, width, in[0], label.data(), in[1], dx, accumulate);
    });
  }
}

TEST_CASE_TEMPLATE("log_softmax shows what is not a number", S, float, double) {
  auto x = random<S>(20, 1);
  x[3] = std::numeric_limits<S>::quiet_NaN();
  x[13] = -std::numeric_limits<S>::infinity();
  const auto y = run<Cuda<S>>(Lists<S>{x}, Lists<S>{unset<S>(20)},
                              [&](auto b, const auto& in, const auto& out) {
                                log_softmax_forward(b, 2, 10, in[0], out[0]);
                              })[0];
  for (std::size_t i = 0; i < 20; ++i) CHECK(std::isnan(y[i]) == (i < 10));
  CHECK(y[13] == -std::numeric_limits<S>::infinity());
}

// --- Normalisation of NCHW images --------------------------------------------------------------

namespace {

/// A normalisation with random numbers for all that it reads.
template <class S>
struct Case {
  NormGeometry g;

  Index size() const { return g.samples * g.channels * g.pixels; }
  Index statistics() const { return (g.shared ? 1 : g.samples) * g.groups(); }
  Index terms() const { return std::max<Index>(1, g.samples * g.channels * g.pixels); }
  std::vector<S> image(std::uint64_t seed) const { return random<S>(size(), seed); }
  std::vector<S> mean() const { return random<S>(statistics(), 11); }
  std::vector<S> inverse() const { return random<S>(statistics(), 12, 0.5, 2); }
  std::vector<S> weight() const { return random<S>(g.channels, 13, 0.5, 2); }
  std::vector<S> bias() const { return random<S>(g.channels, 14); }
};

/// check(case) for channels in groups and for statistics of the batch.
template <class S, class Check>
void for_each_case(const std::vector<NormGeometry>& geometries, Check check_case) {
  for (NormGeometry g : geometries)
    for (const bool shared : {false, true}) {
      g.shared = shared;
      if (shared) g.channels_per_statistic = 1;
      if (g.count() == 0) continue;
      CAPTURE(g.samples);
      CAPTURE(g.channels);
      CAPTURE(g.pixels);
      CAPTURE(g.channels_per_statistic);
      CAPTURE(g.shared);
      check_case(Case<S>{g});
    }
}
/// Less than a warp, more than a block, no multiple of anything, nothing.
const std::vector<NormGeometry> nchw_cases{
    {3, 5, 1, 5}, {2, 24, 63, 3}, {3, 70, 6, 10}, {0, 4, 4, 2}};

}  // namespace

TEST_CASE_TEMPLATE("statistics of NCHW images", S, float, double) {
  for_each_case<S>(nchw_cases, [](const Case<S>& c) {
    const Lists<S> out{unset<S>(c.statistics()), unset<S>(c.statistics())};
    check<S>({c.image(1)}, out, c.terms(), [&](auto b, const auto& in, const auto& to) {
      if (c.g.shared)
        batch_statistics(b, c.g, in[0], to[0], to[1]);
      else
        group_statistics(b, c.g, S(0.1), in[0], to[0], to[1]);
    });
  });
}

TEST_CASE_TEMPLATE("normalize and its VJPs", S, float, double) {
  for_each_case<S>(nchw_cases, [](const Case<S>& c) {
    for (const bool affine : {false, true}) {
      CAPTURE(affine);
      const Lists<S> in{c.image(1),
                        c.mean(),
                        c.inverse(),
                        optional(affine, c.weight()),
                        optional(affine, c.bias()),
                        c.image(2)};
      check<S>(in, {unset<S>(c.size())}, 1, [&](auto b, const auto& x, const auto& y) {
        normalize(b, c.g, x[0], x[1], x[2], x[3], x[4], y[0]);
      });
      check_both_ways<S>(in, c.g.channels, c.terms(),
                         [&](auto b, const auto& x, S* dw, bool accumulate) {
                           normalize_vjp_weight(b, c.g, x[0], x[1], x[2], x[5], dw, accumulate);
                         });
      for (const bool constant : {false, true})
        check_both_ways<S>(
            in, c.size(), c.terms(), [&](auto b, const auto& x, S* dx, bool accumulate) {
              if (c.g.shared)
                batch_norm_vjp_input(b, c.g, constant, x[0], x[1], x[2], x[3], x[5], dx,
                                     accumulate);
              else
                group_norm_vjp_input(b, c.g, x[0], x[1], x[2], x[3], x[5], dx, accumulate);
            });
    }
  });
}

TEST_CASE_TEMPLATE("weight_norm and its VJPs", S, float, double) {
  struct Extents {
    Index rows, width;
  };
  for (const auto& extents : {Extents{5, 9}, {24, 70}, {3, 600}, {1, 1}, {0, 5}}) {
    const Index rows = extents.rows, width = extents.width, size = rows * width;
    CAPTURE(rows);
    CAPTURE(width);
    const Lists<S> in{random<S>(size, 1), random<S>(rows, 2), random<S>(rows, 3, 0.5, 2),
                      random<S>(size, 4)};
    check<S>(in, {unset<S>(size), unset<S>(rows)}, width,
             [&](auto b, const auto& x, const auto& y) {
               weight_norm_forward(b, rows, width, x[0], x[1], y[0], y[1]);
             });
    check_both_ways<S>(in, size, width, [&](auto b, const auto& x, S* dv, bool accumulate) {
      weight_norm_vjp_v(b, rows, width, x[0], x[1], x[2], x[3], dv, accumulate);
    });
    check_both_ways<S>(in, rows, width, [&](auto b, const auto& x, S* dg, bool accumulate) {
      weight_norm_vjp_g(b, rows, width, x[0], x[2], x[3], dg, accumulate);
    });
  }
}

// --- Channels-last images ----------------------------------------------------------------------

namespace {

/// One pixel, one piece, several pieces, more channels than a block has threads, one channel.
const std::vector<NormGeometry> nhwc_cases{{3, 5, 1, 5},     {3, 70, 9, 10},  {3, 24, 200, 3},
                                           {2, 300, 10, 60}, {1, 1, 2100, 1}, {0, 4, 4, 2}};

/// Whether somebody wants a cotangent.
enum class Wanted { no, once, added };

template <class S>
std::vector<S> before(Index n, Wanted wanted) {
  return optional(wanted != Wanted::no, before<S>(n, wanted == Wanted::added));
}
template <class S>
NhwcSink<S> sink(S* to, Wanted wanted) {
  return {to, wanted == Wanted::added};
}

}  // namespace

TEST_CASE_TEMPLATE("nhwc_statistics", S, float, double) {
  for_each_case<S>(nhwc_cases, [](const Case<S>& c) {
    const Lists<S> out{unset<S>(c.statistics()), unset<S>(c.statistics()),
                       unset<S>(c.statistics())};
    const auto statistics = [&](auto b, const auto& in, const auto& to) {
      nhwc_statistics(b, c.g, in[0], {S(0.1), to[0], to[1], to[2]});
    };
    check<S>({c.image(1)}, out, c.terms(), statistics);
    // A large mean costs no accuracy but that of the mean itself.
    const Index offset = 1000;
    check<S>({random<S>(c.size(), 1, offset - 1, offset + 1)}, out, offset * offset, statistics);
  });
}

TEST_CASE_TEMPLATE("group_statistics_of_moments leaves out parts without pixels", S, float,
                   double) {
  for_each_case<S>({{2, 6, 9, 3}}, [](const Case<S>& c) {
    const auto x = c.image(1);
    constexpr Index parts = 3, first[parts + 1]{0, 5, 5, 9};
    std::vector<S> moments;
    for (Index n = 0; n < c.g.samples; ++n)
      for (Index p = 0; p < parts; ++p) {
        const Index count = first[p + 1] - first[p];
        std::vector<S> mean = unset<S>(c.g.channels), squares = mean;
        for (Index k = 0; count && k < c.g.channels; ++k) {
          S sum = 0, sum_of_squares = 0;
          const auto pixel = [&](Index i) {
            return x[at((n * c.g.pixels + i) * c.g.channels + k)];
          };
          for (Index i = first[p]; i < first[p + 1]; ++i) sum += pixel(i);
          mean[at(k)] = sum / static_cast<S>(count);
          for (Index i = first[p]; i < first[p + 1]; ++i)
            sum_of_squares += (pixel(i) - mean[at(k)]) * (pixel(i) - mean[at(k)]);
          squares[at(k)] = sum_of_squares;
        }
        moments.push_back(static_cast<S>(count));
        moments.insert(moments.end(), mean.begin(), mean.end());
        moments.insert(moments.end(), squares.begin(), squares.end());
      }
    const Lists<S> out{unset<S>(c.statistics()), unset<S>(c.statistics())};
    const auto y = run<Cuda<S>>({moments}, out, [&](auto, const auto& in, const auto& to) {
      cuda::group_statistics_of_moments<S>(c.g, parts, in[0], {S(0.1), to[0], nullptr, to[1]});
    });
    check_close(y,
                run<Cpu<S>>({x}, out,
                            [&](auto b, const auto& in, const auto& to) {
                              nhwc_statistics(b, c.g, in[0], {S(0.1), to[0], nullptr, to[1]});
                            }),
                c.terms());
  });
}

TEST_CASE_TEMPLATE("nhwc_normalize", S, float, double) {
  for_each_case<S>(nhwc_cases, [](const Case<S>& c) {
    for (int parts = 0; parts < 16; ++parts) {
      CAPTURE(parts);
      const bool relu = parts & 1;
      check<S>(
          {c.image(1), c.mean(), c.inverse(), optional((parts & 2) != 0, c.weight()),
           optional((parts & 4) != 0, c.bias()), optional((parts & 8) != 0, c.image(2))},
          {unset<S>(c.size())}, 1, [&](auto b, const auto& x, const auto& y) {
            nhwc_normalize(b, NhwcNorm<S>{c.g, x[1], x[2], x[3], x[4], relu}, x[0], x[5], y[0]);
          });
    }
    // In place.
    check<S>({c.mean(), c.inverse()}, {c.image(1)}, 1, [&](auto b, const auto& x, const auto& y) {
      const S* u = y[0];
      nhwc_normalize(b, NhwcNorm<S>{c.g, x[0], x[1]}, u, u, y[0]);
    });
    for (const bool relu : {false, true})
      check<S>({c.image(1), c.mean(), c.inverse(), c.weight(), c.bias()},
               {unset<S>(c.g.samples * c.g.channels)}, c.g.pixels,
               [&](auto b, const auto& x, const auto& y) {
                 nhwc_normalize(b, NhwcNorm<S>{c.g, x[1], x[2], x[3], x[4], relu, true}, x[0],
                                static_cast<const S*>(nullptr), y[0]);
               });
  });
}

TEST_CASE_TEMPLATE("nhwc_normalize_vjp_sums", S, float, double) {
  for_each_case<S>(nhwc_cases, [](const Case<S>& c) {
    const Index sums = c.g.samples * c.g.channels;
    struct Variant {
      bool relu, y, average;
    };
    for (const Variant v : {Variant{false, false, false},
                            {true, true, false},
                            {true, false, false},
                            {false, false, true},
                            {true, false, true}})
      check<S>({c.image(1), c.mean(), c.inverse(), c.weight(), optional(v.y, c.image(2)),
                v.average ? random<S>(sums, 3) : c.image(3), c.bias()},
               {unset<S>(sums), unset<S>(sums)}, c.g.pixels,
               [&](auto b, const auto& x, const auto& to) {
                 const NhwcNorm<S> norm{c.g, x[1], x[2], x[3], x[6], v.relu, v.average};
                 nhwc_normalize_vjp_sums(b, norm, x[0], x[4], x[5], to[0], to[1]);
               });
  });
}

TEST_CASE_TEMPLATE("nhwc_normalize_vjp", S, float, double) {
  struct Variant {
    bool relu, weight, statistics, mask;
    Wanted residual, u;
    bool masked;
    bool same_memory = false;  // of the cotangents of the residual and of u
    bool y = relu;             // otherwise u tells where it was rectified
    bool average = false;
  };
  using enum Wanted;
  for_each_case<S>(nhwc_cases, [](const Case<S>& c) {
    const Index sums = c.g.shared ? c.g.channels : c.g.samples * c.g.channels;
    for (const Variant& v : {Variant{false, false, false, false, no, once, false},
                             {true, true, true, true, once, added, true},
                             {true, false, true, false, added, no, true},
                             {false, true, true, true, no, no, true},
                             {true, true, false, false, added, once, false},
                             {true, true, true, false, added, added, false, true},
                             {false, true, true, true, once, added, true, true},
                             {true, true, true, true, once, added, true, false, false},
                             {true, false, false, false, no, no, true, false, false},
                             {true, true, true, true, no, added, true, false, false, true},
                             {false, true, false, false, no, once, false, false, false, true}}) {
      check<S>(
          {c.image(1), c.mean(), c.inverse(), optional(v.weight, c.weight()),
           optional(v.y, c.image(2)),
           v.average ? random<S>(c.g.samples * c.g.channels, 3) : c.image(3),
           optional(v.statistics, random<S>(sums, 4)), optional(v.statistics, random<S>(sums, 5)),
           optional(v.mask, random<S>(c.g.samples * c.g.channels, 6)),
           optional(v.weight, c.bias())},
          {before<S>(c.size(), v.residual), before<S>(c.size(), v.same_memory ? no : v.u),
           optional(v.masked, unset<S>(c.size()))},
          c.g.channels_per_statistic, [&](auto b, const auto& x, const auto& to) {
            const NhwcNorm<S> norm{c.g, x[1], x[2], x[3], x[9], v.relu, v.average};
            nhwc_normalize_vjp(b, norm, x[0], x[4], x[5], x[6], x[7], x[8], sink(to[0], v.residual),
                               sink(to[v.same_memory ? 0 : 1], v.u), to[2]);
          });
    }
    // In the place of u.
    check<S>({c.mean(), c.inverse(), c.weight(), c.bias(), c.image(3), random<S>(sums, 4),
              random<S>(sums, 5)},
             {c.image(1)}, c.g.channels_per_statistic, [&](auto b, const auto& x, const auto& to) {
               const NhwcNorm<S> norm{c.g, x[0], x[1], x[2], x[3], true};
               const S *u = to[0], *none = nullptr;
               nhwc_normalize_vjp(b, norm, u, none, x[4], x[5], x[6], none, {}, {}, to[0]);
             });
  });
}

TEST_CASE_TEMPLATE("a sample has the same bits alone", S, float, double) {
  for_each_case<S>({{3, 24, 200, 3}, {3, 70, 9, 10}}, [](const Case<S>& c) {
    if (c.g.shared) return;
    const auto all = [](const NormGeometry& g, const Lists<S>& in) {
      const Index channels = g.samples * g.channels, groups = g.samples * g.groups();
      return run<Cuda<S>>(in,
                          {unset<S>(groups), unset<S>(groups), unset<S>(groups), unset<S>(groups),
                           unset<S>(channels), unset<S>(channels)},
                          [&](auto b, const auto& x, const auto& to) {
                            group_statistics(b, g, S(0.1), x[0], to[0], to[1]);
                            nhwc_statistics(b, g, x[0], {S(0.1), to[2], nullptr, to[3]});
                            nhwc_normalize_vjp_sums(b, NhwcNorm<S>{g, to[2], to[3]}, x[0], x[0],
                                                    x[1], to[4], to[5]);
                          });
    };
    const auto sample = [&](Lists<S> lists) {
      for (auto& list : lists) {
        const auto size = static_cast<std::ptrdiff_t>(list.size()) / c.g.samples;
        list = {list.begin() + size, list.begin() + 2 * size};
      }
      return lists;
    };
    const Lists<S> in{c.image(1), c.image(2)};
    NormGeometry one = c.g;
    one.samples = 1;
    const auto whole = sample(all(c.g, in)), alone = all(one, sample(in));
    for (std::size_t k = 0; k < whole.size(); ++k) CHECK(same_bits(whole[k], alone[k]));
  });
}

TEST_CASE_TEMPLATE("nhwc_upsample_add and its VJP", S, float, double) {
  using enum Wanted;
  for (const NhwcUpsampling& g : {NhwcUpsampling{3, 3, 2, 24, 2},
                                  {2, 2, 3, 5, 3},
                                  {1, 2, 1, 70, 4},
                                  {3, 3, 2, 5, 1},
                                  {0, 2, 2, 4, 2}})
    for (const bool relu : {false, true}) {
      CAPTURE(g.channels);
      CAPTURE(g.factor);
      CAPTURE(relu);
      const Index small = g.samples * g.height * g.width * g.channels,
                  large = small * g.factor * g.factor;
      check<S>({random<S>(large, 1), random<S>(small, 2)}, {unset<S>(large)}, 1,
               [&](auto b, const auto& x, const auto& y) {
                 const NhwcSmallImage<S> one{g, x[1]};
                 nhwc_upsample_add(b, std::span(&one, 1), x[0], relu, y[0]);
               });
      for (const Wanted of_large : {no, once, added})
        for (const Wanted of_small : {no, once, added})
          check<S>({optional(relu, random<S>(large, 1)), random<S>(large, 2)},
                   {before<S>(large, of_large), before<S>(small, of_small)}, g.factor * g.factor,
                   [&](auto b, const auto& x, const auto& to) {
                     nhwc_upsample_add_vjp(b, g, x[0], x[1], sink(to[0], of_large),
                                           sink(to[1], of_small));
                   });
    }
}

TEST_CASE_TEMPLATE("nhwc_upsample_add of several images", S, float, double) {
  for (const Index channels : {8, 5})
    for (const std::size_t count : {1, 2, 3, 4, 7})
      for (const bool relu : {false, true}) {
        CAPTURE(channels);
        CAPTURE(count);
        constexpr Index samples = 2, height = 8, width = 4;
        const Index large = samples * height * width * channels;
        Lists<S> in{random<S>(large, 1)};
        std::vector<NhwcUpsampling> geometries;
        for (std::size_t k = 0; k < count; ++k) {
          const Index factor = std::array<Index, 3>{2, 1, 4}[k % 3];
          geometries.push_back({samples, height / factor, width / factor, channels, factor});
          in.push_back(random<S>(large / (factor * factor), k + 2));
        }
        check<S>(in, {unset<S>(large)}, static_cast<Index>(count),
                 [&](auto b, const auto& x, const auto& y) {
                   std::vector<NhwcSmallImage<S>> small;
                   for (std::size_t k = 0; k < count; ++k)
                     small.push_back({geometries[k], x[k + 1]});
                   nhwc_upsample_add(b, std::span<const NhwcSmallImage<S>>(small), x[0], relu,
                                     y[0]);
                 });
      }
}

namespace {

/// What the kernels on images compute when those are stored as X.
template <class X>
class StoredAs {
  using B = Cuda<float>;
  using Images = Uploaded<B, X>;

 public:
  Lists<float> results;

  void normalise(const Case<float>& c) {
    const Images u = up(c.image(1)), residual = up(c.image(2)), cotangent = up(c.image(3)),
                 y = up(unset<float>(c.size())),
                 average = up(unset<float>(c.g.samples * c.g.channels)),
                 of_residual = up(c.image(4)), of_u = up(unset<float>(c.size())),
                 masked = up(unset<float>(c.size()));
    const Uploaded<B> weight(c.weight()), bias(c.bias()), mean(unset<float>(c.statistics())),
        inverse(mean.now()), sums_d(random<float>(c.g.samples * c.g.channels, 5)),
        sums_du(sums_d.now()), mask(random<float>(c.g.samples * c.g.channels, 6));
    nhwc_statistics(B{}, c.g, cx(u), {0.1f, mean.data(), nullptr, inverse.data()});
    NhwcNorm<float> norm{c.g, mean.data(), inverse.data(), weight.data(), bias.data(), true};
    nhwc_normalize(B{}, norm, cx(u), cx(residual), y.data());
    if (!c.g.shared) {  // their sums go over all samples
      nhwc_normalize_vjp_sums(B{}, norm, cx(u), cx(y), cx(cotangent), sums_d.data(),
                              sums_du.data());
      results.insert(results.end(), {sums_d.now(), sums_du.now()});
    }
    nhwc_normalize_vjp(B{}, norm, cx(u), cx(y), cx(cotangent), cs(sums_d), cs(sums_du), cs(mask),
                       {of_residual.data(), true}, {of_u.data(), false}, masked.data());
    norm.average = true;
    nhwc_normalize(B{}, norm, cx(u), static_cast<const X*>(nullptr), average.data());
    results.insert(results.end(), {mean.now(), inverse.now()});
    for (const Images* images : {&y, &of_residual, &of_u, &masked, &average}) down(*images);
  }
  void upsample(const NhwcUpsampling& g, bool relu) {
    const Index size = g.samples * g.height * g.width * g.channels,
                large_size = size * g.factor * g.factor;
    const Images large = up(random<float>(large_size, 1)), small = up(random<float>(size, 2)),
                 y = up(unset<float>(large_size)), of_large = up(random<float>(large_size, 3)),
                 of_small = up(unset<float>(size));
    const NhwcSmallImage<X> one{g, small.data()};
    nhwc_upsample_add(B{}, std::span(&one, 1), cx(large), relu, y.data());
    nhwc_upsample_add_vjp(B{}, g, relu ? cx(y) : nullptr, cx(large),
                          NhwcSink<X>{of_large.data(), true}, NhwcSink<X>{of_small.data(), false});
    for (const Images* images : {&y, &of_large, &of_small}) down(*images);
  }
  void strips(const StripGeometry& g) {
    const Images images = up(random<float>(g.count * g.from_stride, 1)),
                 back = up(random<float>(g.count * g.from_stride, 2));
    const Uploaded<B> scalars(random<float>(g.count * g.to_stride, 3));
    copy_strips(B{}, g, cx(images), scalars.data(), true);
    copy_strips(B{}, {g.count, g.length, g.to_stride, g.from_stride}, cs(scalars), back.data(),
                true);
    results.push_back(scalars.now());
    down(back);
  }

 private:
  /// Numbers that bfloat16 has.
  static Images up(const std::vector<float>& x) {
    const std::vector<Bfloat16> rounded(x.begin(), x.end());
    return Images(std::vector<X>(rounded.begin(), rounded.end()));
  }
  void down(const Images& images) {
    const std::vector<X> x = images.now();
    results.emplace_back(x.begin(), x.end());
  }
  static const X* cx(const Images& images) { return images.data(); }
  static const float* cs(const Uploaded<B>& numbers) { return numbers.data(); }
};

/// The same work on images of both kinds has the same results, but for the rounding of what is
/// stored.
template <class Work>
void check_stored_as_bfloat16(Work work) {
  StoredAs<float> full;
  StoredAs<Bfloat16> half;
  work(full);
  work(half);
  REQUIRE(full.results.size() == half.results.size());
  for (std::size_t k = 0; k < full.results.size(); ++k) {
    CAPTURE(k);
    double error = 0, scale = 0;
    for (std::size_t i = 0; i < full.results[k].size(); ++i) {
      const double x = static_cast<double>(full.results[k][i]),
                   d = static_cast<double>(half.results[k][i]) - x;
      error += d * d;
      scale += x * x;
    }
    CHECK(std::sqrt(error) <= 0x1p-8 * std::sqrt(scale));
  }
}

}  // namespace

TEST_CASE(
    "Images stored as bfloat16: kernels do what they do to floats, and round what they write") {
  auto cases = nhwc_cases;
  cases.push_back({2, 64, 40, 8});  // by packs of eight
  for_each_case<float>(cases, [](const Case<float>& c) {
    check_stored_as_bfloat16([&](auto& stored) { stored.normalise(c); });
  });
  for (const Index channels : {24, 5, 70})
    for (const bool relu : {false, true})
      check_stored_as_bfloat16([&](auto& stored) {
        stored.upsample({3, 3, 2, channels, 2}, relu);
      });
  for (const StripGeometry& g : {StripGeometry{3, 5, 7, 6}, {2, 9000, 9008, 9000}, {3, 8, 12, 10}})
    check_stored_as_bfloat16([&](auto& stored) { stored.strips(g); });
}
