// SPDX-License-Identifier: MIT
// What backend/concept.hpp promises, primitive by primitive, for the backends in the list
// DEQ_CONTRACT_BACKENDS, which a test program defines before it includes this.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>
#include <deq/core/bfloat16.hpp>
#include <deq/core/parallel.hpp>

#include "maps.hpp"

using namespace deq;
using namespace deq_test;

namespace {

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// A host vector that also lives in the memory of backend B.
template <class B, class T = typename B::Scalar>
class Mirror {
 public:
  explicit Mirror(std::vector<T> values)
      : array_(static_cast<Index>(values.size())), host_(std::move(values)) {
    B::upload_bytes(array_.data(), host_.data(), host_.size() * sizeof(T));
  }
  T* data() { return array_.data(); }
  BatchView<T> batch(Index dim) { return {array_.data(), dim, dim > 0 ? array_.size() / dim : 0}; }
  BasisView<T> basis(Index dim, Index capacity) { return {array_.data(), dim, capacity}; }
  /// The numbers as the backend has them now.
  std::vector<T> now() const {
    std::vector<T> values(host_.size());
    B::download_bytes(values.data(), array_.data(), values.size() * sizeof(T));
    return values;
  }
  /// The numbers as they were at first.
  const std::vector<T>& before() const { return host_; }

 private:
  Array<B, T> array_;
  std::vector<T> host_;
};

template <class B>
Mirror<B> random_batch(Index n, std::uint32_t seed) {
  std::vector<typename B::Scalar> x;
  for (const double xi : Noise(seed).vector(n)) x.push_back(static_cast<typename B::Scalar>(xi));
  return Mirror<B>(std::move(x));
}
template <class B>
Mirror<B> numbers(std::vector<double> values) {
  std::vector<typename B::Scalar> x;
  for (const double xi : values) x.push_back(static_cast<typename B::Scalar>(xi));
  return Mirror<B>(std::move(x));
}

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// A truth value a sample, in the memory of backend B.
template <class B>
class Flags {
 public:
  explicit Flags(const std::vector<bool>& values) : array_(static_cast<Index>(values.size())) {
    for (Index i = 0; i < array_.size(); ++i) {
      const bool value = values[at(i)];
      B::upload_bytes(array_.data() + i, &value, sizeof value);
    }
  }
  const bool* data() const { return array_.data(); }

 private:
  Array<B, bool> array_;
};

/// Six samples, of which 1, 3 and 4 are active; dimensions around the widths of vector registers
/// and panels.
constexpr Index count = 6;
const std::vector<Index> active{1, 3, 4};
bool is_active(Index s) { return std::find(active.begin(), active.end(), s) != active.end(); }
constexpr Index dims[]{1, 3, 16, 33, 2048, 5000};

template <class S>
bool near(S x, double expected, double scale) {
  return std::abs(static_cast<double>(x) - expected) <=
         64 * static_cast<double>(std::numeric_limits<S>::epsilon()) * scale;
}

/// Compares a batch with expected(s, i) for active samples, and with what it was before for the
/// others.
template <class B, class Expected>
void check_batch(const Mirror<B>& x, Index dim, Expected expected) {
  using S = typename B::Scalar;
  const auto now = x.now();
  bool right = true, untouched = true;
  for (Index s = 0; s < count; ++s)
    for (Index i = 0; i < dim; ++i) {
      const std::size_t k = at(s * dim + i);
      if (is_active(s)) {
        right = right && near(now[k], static_cast<double>(expected(s, i)), 4);
      } else {
        const S before = x.before()[k];
        untouched = untouched && std::memcmp(&now[k], &before, sizeof(S)) == 0;
      }
    }
  CHECK_MESSAGE(right, "dim ", dim);
  CHECK_MESSAGE(untouched, "dim ", dim);
}

/// What a sample's small algebra finds: its sums, each read by any thread of its team, and their
/// total, added up by one that has not read them.
template <class S>
struct Remember {
  Index capacity;
  const Index* rank;
  const S *squared, *sums;
  S *seen, *total;
  Index* calls;

  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index s, const Team& team) const {
    S* const mine = seen + s * capacity;
    const S* const of_sample = sums + s * capacity;
    team.for_each(rank[s], [=](Index i) { mine[i] = of_sample[i]; });
    team.sync();
    if (team.rank > 0) return;
    total[s] = squared[s];
    for (Index i = 0; i < rank[s]; ++i) total[s] += mine[i];
    ++calls[s];
  }
};

/// Vectors made of others, by `extend` and `step`: one that is kept behind them, in place of one of
/// them, nowhere; the last with alpha = 0, which makes nothing of a NaN.
template <class B>
class NewVector {
  using S = typename B::Scalar;

 public:
  static constexpr Index capacity = 7;
  Mirror<B, Index> rank{{0, 6, 0, 7, 5, 0}}, slot{{0, 6, 0, 2, -1, 0}};
  Mirror<B> alpha = numbers<B>({1, 2, 1, -1, 0, 1}), c = random_batch<B>(capacity * count, 53);

  explicit NewVector(Index dim) : dim_(dim), before_(basis().before()) {}
  Mirror<B> basis() const { return random_batch<B>(dim_ * capacity * count, 50); }

  /// Number d of the vector of sample s that is made of x.
  double expected(Index s, Index d, S x) const {
    const auto factor = static_cast<double>(alpha.before()[at(s)]);
    double y = factor == 0 ? 0 : factor * static_cast<double>(x);
    for (Index i = 0; i < rank.before()[at(s)]; ++i)
      y += static_cast<double>(c.before()[at(s * capacity + i)]) *
           static_cast<double>(before_[at((s * capacity + i) * dim_ + d)]);
    return y;
  }
  /// Made of x(s, d), it is where it should be, and all others are as they were.
  template <class X>
  void check_basis(const Mirror<B>& h, X x) const {
    const auto now = h.now();
    bool right = true;
    for (Index s = 0; s < count; ++s)
      for (Index i = 0; i < capacity; ++i)
        for (Index d = 0; d < dim_; ++d) {
          const std::size_t k = at((s * capacity + i) * dim_ + d);
          right = right && (is_active(s) && i == slot.before()[at(s)]
                                ? near(now[k], expected(s, d, x(s, d)), 8)
                                : now[k] == before_[k]);
        }
    CHECK_MESSAGE(right, "dim ", dim_);
  }

 private:
  Index dim_;
  std::vector<S> before_;
};

}  // namespace

TEST_CASE_TEMPLATE("A backend moves bytes between host and its own memory", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  auto x = random_batch<B>(100, 1);
  Array<B> y(100);
  B::copy_bytes(y.data(), x.data(), 100 * sizeof(S));
  std::vector<S> back(100);
  B::download_bytes(back.data(), y.data(), 100 * sizeof(S));
  CHECK(back == x.before());
  B::copy_bytes(nullptr, nullptr, 0);
  B::upload_bytes(nullptr, nullptr, 0);
  B::download_bytes(nullptr, nullptr, 0);
  B::fill(y.data() + 10, 20, S(3));
  B::download_bytes(back.data(), y.data(), 100 * sizeof(S));
  for (Index i = 0; i < 100; ++i)
    CHECK(back[at(i)] == (i >= 10 && i < 30 ? S(3) : x.before()[at(i)]));
}

TEST_CASE_TEMPLATE("An array keeps its memory until it must grow", B, DEQ_CONTRACT_BACKENDS) {
  Array<B> x;
  CHECK(x.size() == 0);
  x.resize(0);
  x.resize(10);
  const auto* first = x.data();
  x.resize(3);
  CHECK(x.data() == first);
  x.resize(10);
  CHECK(x.data() == first);
  CHECK(x.bytes() >= 10 * static_cast<Index>(sizeof(typename B::Scalar)));
  Array<B> y = std::move(x);
  CHECK(y.data() == first);
  const BasisView<typename B::Scalar> h = y.basis(2, 3, 4);
  CHECK(y.size() == 24);
  CHECK(h.vec(2, 1) - h.vec(0, 0) == (2 * 3 + 1) * 2);
}

TEST_CASE_TEMPLATE("Gather, scatter and copy move active columns and leave the others alone", B,
                   DEQ_CONTRACT_BACKENDS) {
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index dim : dims) {
    auto whole = random_batch<B>(dim * count, 2), compact = random_batch<B>(dim * 3, 3);
    const auto packed_before = compact.before();
    auto scattered = random_batch<B>(dim * count, 4), copied = random_batch<B>(dim * count, 5);
    B::scatter(a, compact.batch(dim), scattered.batch(dim));
    check_batch(scattered, dim, [&](Index s, Index i) {
      const Index j = std::find(active.begin(), active.end(), s) - active.begin();
      return packed_before[at(j * dim + i)];
    });
    B::gather(a, whole.batch(dim), compact.batch(dim));
    const auto packed = compact.now();
    bool right = true;
    for (Index j = 0; j < 3; ++j)
      for (Index i = 0; i < dim; ++i)
        right = right && packed[at(j * dim + i)] == whole.before()[at(active[at(j)] * dim + i)];
    CHECK(right);
    B::copy(a, whole.batch(dim), copied.batch(dim));
    check_batch(copied, dim, [&](Index s, Index i) { return whole.before()[at(s * dim + i)]; });
    const std::vector<bool> wanted{true, true, false, false, true, false};
    const Flags<B> where(wanted);
    auto some = random_batch<B>(dim * count, 5);
    B::copy(a, whole.batch(dim), some.batch(dim), where.data());
    check_batch(some, dim, [&](Index s, Index i) {
      return (wanted[at(s)] ? whole : some).before()[at(s * dim + i)];
    });
  }
}

TEST_CASE_TEMPLATE("The residual is F - Z with both squared norms, also in place of Z", B,
                   DEQ_CONTRACT_BACKENDS) {
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index dim : dims)
    for (const bool in_place : {false, true}) {
      auto f = random_batch<B>(dim * 3, 6), z = random_batch<B>(dim * count, 7),
           g = random_batch<B>(dim * count, 8);
      auto gg = numbers<B>({-1, -2, -3, -4, -5, -6}), ff = numbers<B>({-1, -2, -3, -4, -5, -6});
      B::residual(a, f.batch(dim), z.batch(dim), (in_place ? z : g).batch(dim), gg.data(),
                  ff.data());
      const auto expected = [&](Index s, Index i) {
        const Index j = std::find(active.begin(), active.end(), s) - active.begin();
        return f.before()[at(j * dim + i)] - z.before()[at(s * dim + i)];
      };
      check_batch(in_place ? z : g, dim, expected);
      const auto gg_now = gg.now(), ff_now = ff.now();
      for (Index s = 0; s < count; ++s) {
        if (!is_active(s)) {
          CHECK(gg_now[at(s)] == gg.before()[at(s)]);
          CHECK(ff_now[at(s)] == ff.before()[at(s)]);
          continue;
        }
        double g_sum = 0, f_sum = 0;
        const Index j = std::find(active.begin(), active.end(), s) - active.begin();
        for (Index i = 0; i < dim; ++i) {
          g_sum += std::pow(static_cast<double>(expected(s, i)), 2);
          f_sum += std::pow(static_cast<double>(f.before()[at(j * dim + i)]), 2);
        }
        CHECK(near(gg_now[at(s)], g_sum, g_sum));
        CHECK(near(ff_now[at(s)], f_sum, f_sum));
      }
    }
}

TEST_CASE_TEMPLATE("Dot and axpby compute their formulas, and 0 times a NaN is 0", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  using Const = BatchView<const S>;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index dim : dims) {
    auto x = random_batch<B>(dim * count, 9), y = random_batch<B>(dim * count, 10);
    auto out = numbers<B>(std::vector<double>(6, not_a_number));
    B::dot(a, x.batch(dim), y.batch(dim), out.data());
    for (Index s = 0; s < count; ++s) {
      double sum = 0, scale = 0;
      for (Index i = 0; i < dim; ++i) {
        const double term = static_cast<double>(x.before()[at(s * dim + i)]) *
                            static_cast<double>(y.before()[at(s * dim + i)]);
        sum += term;
        scale += std::abs(term);
      }
      if (is_active(s))
        CHECK(near(out.now()[at(s)], sum, scale));
      else
        CHECK(std::isnan(out.now()[at(s)]));
    }

    auto same = random_batch<B>(dim * count, 10);
    B::axpby(a, S(2), Const(x.batch(dim)), S(-3), same.batch(dim));
    check_batch(same, dim, [&](Index s, Index i) {
      return 2 * x.before()[at(s * dim + i)] - 3 * y.before()[at(s * dim + i)];
    });
    auto alpha = numbers<B>({1, 2, 3, 4, 0, 6}), beta = numbers<B>({1, -1, 1, 0, 1, 1});
    auto each = random_batch<B>(dim * count, 10);
    B::axpby(a, alpha.data(), Const(x.batch(dim)), beta.data(), each.batch(dim));
    check_batch(each, dim, [&](Index s, Index i) {
      return alpha.before()[at(s)] * x.before()[at(s * dim + i)] +
             beta.before()[at(s)] * y.before()[at(s * dim + i)];
    });
    auto nans = Mirror<B>(std::vector<S>(at(dim * count), std::numeric_limits<S>::quiet_NaN()));
    B::axpby(a, S(2), Const(x.batch(dim)), S(0), nans.batch(dim));
    check_batch(nans, dim, [&](Index s, Index i) { return 2 * x.before()[at(s * dim + i)]; });
    auto zeros = numbers<B>({0, 0, 0, 0, 0, 0});
    auto more = Mirror<B>(std::vector<S>(at(dim * count), std::numeric_limits<S>::infinity()));
    B::axpby(a, alpha.data(), Const(x.batch(dim)), zeros.data(), more.batch(dim));
    check_batch(more, dim, [&](Index s, Index i) {
      return alpha.before()[at(s)] * x.before()[at(s * dim + i)];
    });
    // y <- -y as policies write it: both operands the same.
    auto negated = random_batch<B>(dim * count, 10);
    B::axpby(a, S(-2), Const(negated.batch(dim)), S(1), negated.batch(dim));
    check_batch(negated, dim, [&](Index s, Index i) { return -y.before()[at(s * dim + i)]; });
  }
}

TEST_CASE_TEMPLATE("Project and combine use the first rank vectors of each active basis", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  constexpr Index capacity = 4;
  Mirror<B, Index> rank({4, 2, 1, 0, 4, 3});
  for (const Index dim : dims) {
    auto h = random_batch<B>(dim * capacity * count, 11), x = random_batch<B>(dim * count, 12);
    auto out = random_batch<B>(capacity * count, 13);
    B::project(a, h.basis(dim, capacity), rank.data(), x.batch(dim), out.data());
    const auto now = out.now();
    for (Index s = 0; s < count; ++s)
      for (Index i = 0; i < capacity; ++i) {
        const std::size_t k = at(s * capacity + i);
        if (!is_active(s)) {
          CHECK(now[k] == out.before()[k]);
        } else if (i < rank.before()[at(s)]) {
          double sum = 0, scale = 0;
          for (Index d = 0; d < dim; ++d) {
            const double term = static_cast<double>(h.before()[at((s * capacity + i) * dim + d)]) *
                                static_cast<double>(x.before()[at(s * dim + d)]);
            sum += term;
            scale += std::abs(term);
          }
          CHECK(near(now[k], sum, scale));
        }
      }
    auto y = random_batch<B>(dim * count, 14), c = random_batch<B>(capacity * count, 15);
    const auto combination = [&](Index s, Index d, double sum) {
      for (Index i = 0; i < rank.before()[at(s)]; ++i)
        sum += static_cast<double>(c.before()[at(s * capacity + i)]) *
               static_cast<double>(h.before()[at((s * capacity + i) * dim + d)]);
      return sum;
    };
    B::combine(a, h.basis(dim, capacity), rank.data(), c.data(), S(-2), x.batch(dim), y.batch(dim));
    check_batch(y, dim, [&](Index s, Index d) {
      return combination(s, d, -2 * static_cast<double>(x.before()[at(s * dim + d)]));
    });
    auto same = random_batch<B>(dim * count, 14);
    B::combine(a, h.basis(dim, capacity), rank.data(), c.data(), S(1), same.batch(dim),
               same.batch(dim));
    check_batch(same, dim, [&](Index s, Index d) {
      return combination(s, d, static_cast<double>(same.before()[at(s * dim + d)]));
    });
  }
  // A basis without room is a basis without vectors.
  auto x = random_batch<B>(3 * count, 16);
  Mirror<B, Index> none({0, 0, 0, 0, 0, 0});
  B::project(a, BasisView<const S>{nullptr, 3, 0}, none.data(), x.batch(3), nullptr);
  B::combine(a, BasisView<const S>{nullptr, 3, 0}, none.data(), nullptr, S(1), x.batch(3),
             x.batch(3));
  CHECK(x.now() == x.before());
}

TEST_CASE_TEMPLATE("The residual may be projected in the pass that forms it", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index capacity : {0, 1, 6, 9}) {
    Mirror<B, Index> rank({0, capacity, 0, capacity / 2, capacity, 0});
    for (const Index dim : dims) {
      auto f = random_batch<B>(dim * 3, 6), z = random_batch<B>(dim * count, 7),
           h = random_batch<B>(dim * capacity * count, 11);
      auto g = random_batch<B>(dim * count, 8), g_apart = random_batch<B>(dim * count, 8);
      auto norms = random_batch<B>(2 * count, 9), norms_apart = random_batch<B>(2 * count, 9);
      auto c = random_batch<B>(capacity * count, 10),
           c_apart = random_batch<B>(capacity * count, 10);
      const BasisView<const S> basis = h.basis(dim, capacity);
      B::residual(a, f.batch(dim), z.batch(dim), g.batch(dim), norms.data(), norms.data() + count,
                  basis, rank.data(), c.data(), deq::detail::AnySampleWork{});
      B::residual(a, f.batch(dim), z.batch(dim), g_apart.batch(dim), norms_apart.data(),
                  norms_apart.data() + count);
      B::project(a, basis, rank.data(), g_apart.batch(dim), c_apart.data());
      CHECK(g.now() == g_apart.now());
      const auto now = norms.now(), apart = norms_apart.now();
      for (std::size_t i = 0; i < now.size(); ++i)
        CHECK(near(now[i], static_cast<double>(apart[i]), std::abs(static_cast<double>(apart[i]))));
      CHECK(c.now() == c_apart.now());
    }
  }
}

namespace {

/// A pass that does each sample's small algebra at its end.
template <class B>
void check_small_algebra() {
  using S = typename B::Scalar;
  constexpr Index capacity = 40;  // more than a warp has threads
  Mirror<B, Index> ids(active), rank({0, 40, 0, 33, 0, 0});
  const Samples a{ids.data(), 3};
  for (const Index dim : {0, 1, 33, 5000, 13000}) {
    auto f = random_batch<B>(dim * 3, 6), z = random_batch<B>(dim * count, 7),
         h = random_batch<B>(dim * capacity * count, 11);
    auto gg = random_batch<B>(count, 12), ff = random_batch<B>(count, 13);
    auto c = random_batch<B>(capacity * count, 10), seen = random_batch<B>(capacity * count, 14),
         total = random_batch<B>(count, 15);
    Mirror<B, Index> calls(std::vector<Index>(at(count), 0));
    const Remember<S> remember{capacity,    rank.data(),  gg.data(),   c.data(),
                               seen.data(), total.data(), calls.data()};
    const auto check = [&](Index expected_calls) {
      const auto sums = c.now(), saw = seen.now(), squared = gg.now(), added = total.now();
      const auto called = calls.now();
      for (Index s = 0; s < count; ++s) {
        CHECK(called[at(s)] == (is_active(s) ? expected_calls : 0));
        const Index n = rank.before()[at(s)];
        S sum = is_active(s) ? squared[at(s)] : total.before()[at(s)];
        for (Index i = 0; i < n; ++i) sum += sums[at(s * capacity + i)];
        CHECK(added[at(s)] == sum);
        for (Index i = 0; i < capacity; ++i) {
          const std::size_t k = at(s * capacity + i);
          CHECK(saw[k] == (i < n ? sums[k] : seen.before()[k]));
        }
      }
    };
    const BasisView<const S> basis = h.basis(dim, capacity);
    auto g = random_batch<B>(dim * count, 8);
    B::residual(a, f.batch(dim), z.batch(dim), g.batch(dim), gg.data(), ff.data(), basis,
                rank.data(), c.data(), deq::detail::AnySampleWork{});
    const std::vector<std::vector<S>> expected{gg.now(), ff.now(), c.now()};
    for (const Index pass : {1, 2}) {  // the first leaves nothing to the second
      B::fill(c.data(), capacity * count, S(0));
      B::residual(a, f.batch(dim), z.batch(dim), BatchView<S>{}, gg.data(), ff.data(), basis,
                  rank.data(), c.data(), remember);
      check(pass);
    }
    CHECK(gg.now() == expected[0]);
    CHECK(ff.now() == expected[1]);
    for (const Index s : active)
      for (Index i = 0; i < rank.before()[at(s)]; ++i)
        CHECK(c.now()[at(s * capacity + i)] == expected[2][at(s * capacity + i)]);
    B::for_each_team(a, remember);
    check(3);
  }
}

}  // namespace

TEST_CASE_TEMPLATE("A pass may do each sample's small algebra at its end", B,
                   DEQ_CONTRACT_BACKENDS) {
  check_small_algebra<B>();
}

TEST_CASE_TEMPLATE("Extend forms a new vector and keeps it", B, DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index dim : dims) {
    NewVector<B> made(dim);
    auto h = made.basis();
    std::vector<S> poisoned = random_batch<B>(dim * count, 52).before();
    std::fill_n(poisoned.begin() + 4 * dim, dim, std::numeric_limits<S>::quiet_NaN());
    Mirror<B> x(poisoned);
    B::extend(a, h.basis(dim, made.capacity), made.rank.data(), made.c.data(), made.alpha.data(),
              x.batch(dim), made.slot.data());
    made.check_basis(h, [&](Index s, Index d) { return poisoned[at(s * dim + d)]; });
  }
}

TEST_CASE_TEMPLATE("A step is kept and made, and the place before it may be put aside", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  const std::vector<bool> improved{true, true, true, false, true, true};
  const Flags<B> where(improved);
  for (const Index dim : dims) {
    NewVector<B> made(dim);
    auto h = made.basis();
    auto z = random_batch<B>(dim * count, 51), best = random_batch<B>(dim * count, 54);
    std::vector<S> poisoned = random_batch<B>(dim * 3, 52).before();
    std::fill_n(poisoned.begin() + 2 * dim, dim, std::numeric_limits<S>::quiet_NaN());
    Mirror<B> f(poisoned);
    auto squared = numbers<B>({-1, -1, -1, -1, -1, -1}),
         seen = numbers<B>({-1, -1, -1, -1, -1, -1});
    Mirror<B, Index> calls(std::vector<Index>(at(count), 0)),
        none(std::vector<Index>(at(count), 0));
    B::step(
        a, h.basis(dim, made.capacity), made.rank.data(), made.c.data(), made.alpha.data(),
        f.batch(dim), made.slot.data(), z.batch(dim), best.batch(dim), where.data(), squared.data(),
        Remember<S>{0, none.data(), squared.data(), nullptr, nullptr, seen.data(), calls.data()});
    const auto residual = [&](Index s, Index d) {
      const Index j = std::find(active.begin(), active.end(), s) - active.begin();
      return poisoned[at(j * dim + d)] - z.before()[at(s * dim + d)];
    };
    made.check_basis(h, residual);
    check_batch(z, dim, [&](Index s, Index d) {
      return static_cast<double>(z.before()[at(s * dim + d)]) + made.expected(s, d, residual(s, d));
    });
    check_batch(best, dim, [&](Index s, Index d) {
      return (improved[at(s)] ? z : best).before()[at(s * dim + d)];
    });
    CHECK(seen.now() == squared.now());
    for (Index s = 0; s < count; ++s) {
      double sum = 0;
      for (Index d = 0; d < dim; ++d) {
        const double y = is_active(s) ? made.expected(s, d, residual(s, d)) : 0;
        sum += y * y;
      }
      CHECK(near(squared.now()[at(s)], is_active(s) ? sum : -1, is_active(s) ? sum : 1));
      CHECK(calls.now()[at(s)] == (is_active(s) ? 1 : 0));
    }
  }
}

TEST_CASE_TEMPLATE("A basis may be stored as bfloat16", B, DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  constexpr Index capacity = 3;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  for (const Index dim : dims) {
    // The same basis, rounded, stored both ways.
    std::vector<Bfloat16> compact;
    std::vector<double> rounded;
    for (const double v : Noise(70).vector(count * capacity * dim)) {
      compact.push_back(Bfloat16(v));
      rounded.push_back(static_cast<double>(static_cast<float>(compact.back())));
    }
    Mirror<B, Bfloat16> h(compact);
    auto plain = numbers<B>(rounded);
    Mirror<B, Index> rank({0, 2, 0, 3, 1, 0}), slot({-1, 2, -1, -1, 1, -1});
    auto f = random_batch<B>(dim * 3, 71), z = random_batch<B>(dim * count, 72),
         alpha = numbers<B>({0, 0.7, 0, 1, 0, 0}), c = random_batch<B>(count * capacity, 73);
    const Flags<B> nowhere(std::vector<bool>(at(count), false));
    const auto run = [&](auto basis) {
      auto g = random_batch<B>(dim * count, 74), moved = random_batch<B>(dim * count, 75),
           gg = random_batch<B>(count, 76), ff = random_batch<B>(count, 77),
           p = random_batch<B>(count * capacity, 78), q = random_batch<B>(count * capacity, 79),
           y = random_batch<B>(dim * count, 80), yy = random_batch<B>(count, 81);
      B::residual(a, f.batch(dim), z.batch(dim), g.batch(dim), gg.data(), ff.data(), basis,
                  rank.data(), p.data(), deq::detail::AnySampleWork{});
      B::project(a, basis, rank.data(), z.batch(dim), q.data());
      B::combine(a, basis, rank.data(), c.data(), S(-1), z.batch(dim), y.batch(dim));
      B::step(a, basis, rank.data(), c.data(), alpha.data(), f.batch(dim), slot.data(),
              moved.batch(dim), BatchView<S>{}, nowhere.data(), yy.data(),
              deq::detail::AnySampleWork{});
      return std::vector<std::vector<S>>{g.now(), gg.now(), ff.now(),    p.now(),
                                         q.now(), y.now(),  moved.now(), yy.now()};
    };
    const auto expected = run(plain.basis(dim, capacity));
    const auto got = run(BasisView<Bfloat16>{h.data(), dim, capacity});
    // All but what `step` makes is the same; that is rounded.
    for (std::size_t i = 0; i < 6; ++i) {
      bool right = true;
      for (std::size_t k = 0; k < got[i].size(); ++k)
        right = right && near(got[i][k], static_cast<double>(expected[i][k]),
                              4 * std::sqrt(static_cast<double>(dim)));
      CHECK_MESSAGE(right, "result ", i, ", dim ", dim);
    }
    const auto start = random_batch<B>(dim * count, 75).before();
    const auto made = h.now();
    for (const Index s : active) {
      const Index to = slot.before()[at(s)];
      double squared = 0;
      bool right = true;
      for (Index k = 0; k < dim; ++k) {
        const std::size_t place = at(s * dim + k);
        const auto from = static_cast<double>(start[place]);
        const double step = static_cast<double>(got[6][place]) - from,
                     exact = static_cast<double>(expected[6][place]) - from;
        right = right && std::abs(step - exact) <= 0x1p-8 * std::abs(exact) + 1e-6;
        const double stored =
            to < 0
                ? step
                : static_cast<double>(static_cast<float>(made[at((s * capacity + to) * dim + k)]));
        right = right && std::abs(step - stored) <= 1e-6;
        squared += step * step;
      }
      CHECK_MESSAGE(right, "dim ", dim);
      CHECK(static_cast<double>(got[7][at(s)]) == doctest::Approx(squared).epsilon(1e-4));
    }
    // Vectors of other slots and other samples stay as they are.
    bool untouched = true;
    for (Index v = 0; v < count * capacity; ++v) {
      if (is_active(v / capacity) && slot.before()[at(v / capacity)] == v % capacity) continue;
      untouched = untouched && std::memcmp(&made[at(v * dim)], &compact[at(v * dim)],
                                           at(dim) * sizeof(Bfloat16)) == 0;
    }
    CHECK(untouched);
  }
}

TEST_CASE_TEMPLATE("Blocks make up the range", B, DEQ_CONTRACT_BACKENDS) {
  for (const Index n : {0, 1, 7, 1000})
    for (const Index work : {1, 100, 1000000}) {
      std::vector<int> visits(at(n));
      B::in_blocks(n, work, [&](Index first, Index size) {
        for (Index i = first; i < first + size; ++i) ++visits[at(i)];
      });
      CHECK(visits == std::vector<int>(at(n), 1));
    }
}

TEST_CASE_TEMPLATE("Store, accumulate and rotate touch one slot of each active basis", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  Mirror<B, Index> ids(active);
  const Samples a{ids.data(), 3};
  constexpr Index capacity = 4;
  Mirror<B, Index> slot({0, 3, 1, 2, 0, 1}), nowhere({-1, -1, -1, -1, -1, -1});
  auto alpha = numbers<B>({1, 2, 3, -4, 0, 6});
  for (const Index dim : dims) {
    // Sample 4 has alpha = 0: what it is multiplied with is all NaN.
    auto x = random_batch<B>(dim * count, 17);
    std::vector<S> poisoned = x.before();
    std::fill_n(poisoned.begin() + 4 * dim, dim, std::numeric_limits<S>::quiet_NaN());
    Mirror<B> source(poisoned);
    auto h = random_batch<B>(dim * capacity * count, 18);
    B::store(a, alpha.data(), source.batch(dim), h.basis(dim, capacity), nowhere.data());
    CHECK(h.now() == h.before());
    B::store(a, alpha.data(), source.batch(dim), h.basis(dim, capacity), slot.data());
    const auto stored = h.now();
    bool right = true;
    for (Index s = 0; s < count; ++s)
      for (Index i = 0; i < capacity; ++i)
        for (Index d = 0; d < dim; ++d) {
          const std::size_t k = at((s * capacity + i) * dim + d);
          const bool written = is_active(s) && i == slot.before()[at(s)];
          const S product = s == 4 ? S(0) : alpha.before()[at(s)] * poisoned[at(s * dim + d)];
          right = right && stored[k] == (written ? product : h.before()[k]);
        }
    CHECK(right);

    std::vector<S> basis = random_batch<B>(dim * capacity * count, 19).before();
    std::fill_n(basis.begin() + 4 * capacity * dim, dim, std::numeric_limits<S>::quiet_NaN());
    Mirror<B> vectors(basis);
    auto y = random_batch<B>(dim * count, 20);
    B::accumulate(a, alpha.data(), vectors.basis(dim, capacity), slot.data(), y.batch(dim));
    check_batch(y, dim, [&](Index s, Index d) {
      const S yd = y.before()[at(s * dim + d)];
      return s == 4 ? yd
                    : yd + alpha.before()[at(s)] *
                               basis[at((s * capacity + slot.before()[at(s)]) * dim + d)];
    });

    auto turned = random_batch<B>(dim * capacity * count, 21);
    auto cosine = numbers<B>({1, 0.6, 1, 0, 0.8, 1}), sine = numbers<B>({0, 0.8, 0, 1, -0.6, 0});
    B::rotate(a, turned.basis(dim, capacity), 1, cosine.data(), sine.data());
    const auto now = turned.now();
    right = true;
    for (Index s = 0; s < count; ++s)
      for (Index i = 0; i < capacity; ++i)
        for (Index d = 0; d < dim; ++d) {
          const auto old = [&](Index v) {
            return static_cast<double>(turned.before()[at((s * capacity + v) * dim + d)]);
          };
          const double c = static_cast<double>(cosine.before()[at(s)]);
          const double t = static_cast<double>(sine.before()[at(s)]);
          double expected = old(i);
          if (is_active(s) && i == 1) expected = c * old(1) + t * old(2);
          if (is_active(s) && i == 2) expected = c * old(2) - t * old(1);
          right = right && near(now[at((s * capacity + i) * dim + d)], expected, 1);
        }
    CHECK(right);
  }
}

/// Who is in a set: a backend may leave holes.
template <class B>
std::vector<Index> members(Samples a) {
  std::vector<Index> ids(at(a.count));
  B::download_bytes(ids.data(), a.id, ids.size() * sizeof(Index));
  std::erase_if(ids, [](Index s) { return s < 0; });
  return ids;
}

TEST_CASE_TEMPLATE("Filter keeps the order and works in place, for_each visits active samples", B,
                   DEQ_CONTRACT_BACKENDS) {
  Mirror<B, Index> ids({0, 1, 3, 4, 7, 8}), kept({-1, -1, -1, -1, -1, -1});
  const Samples a{ids.data(), 6};
  const Samples even = B::filter(
      a, [] DEQ_HOST_DEVICE(Index s) { return s % 2 == 0; }, kept.data());
  CHECK(members<B>(even) == std::vector<Index>{0, 4, 8});
  CHECK(even.id == kept.data());
  CHECK(!B::empty(even));
  const Samples in_place = B::filter(
      a, [] DEQ_HOST_DEVICE(Index s) { return s > 0 && s < 8; }, ids.data());
  CHECK(members<B>(in_place) == std::vector<Index>{1, 3, 4, 7});
  const Samples twice = B::filter(
      in_place, [] DEQ_HOST_DEVICE(Index s) { return s != 3; }, ids.data());
  CHECK(members<B>(twice) == std::vector<Index>{1, 4, 7});
  Mirror<B, int> visits(std::vector<int>(9, 0));
  int* const visited = visits.data();
  B::for_each(twice, [=] DEQ_HOST_DEVICE(Index s) { visited[s] += 1; });
  CHECK(visits.now() == std::vector<int>{0, 1, 0, 0, 1, 0, 0, 1, 0});
  const Samples nobody = B::filter(
      twice, [] DEQ_HOST_DEVICE(Index) { return false; }, ids.data());
  CHECK(B::empty(nobody));
}

TEST_CASE_TEMPLATE("Nobody active is nothing to do", B, DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  const Samples nobody{};
  CHECK(B::empty(nobody));
  B::gather(nobody, BatchView<const S>{}, BatchView<S>{});
  B::scatter(nobody, BatchView<const S>{}, BatchView<S>{});
  B::copy(nobody, BatchView<const S>{}, BatchView<S>{});
  B::residual(nobody, BatchView<const S>{}, BatchView<const S>{}, BatchView<S>{}, nullptr, nullptr);
  B::dot(nobody, BatchView<const S>{}, BatchView<const S>{}, nullptr);
  B::axpby(nobody, S(1), BatchView<const S>{}, S(1), BatchView<S>{});
  B::project(nobody, BasisView<const S>{}, nullptr, BatchView<const S>{}, nullptr);
  B::combine(nobody, BasisView<const S>{}, nullptr, nullptr, S(1), BatchView<const S>{},
             BatchView<S>{});
  B::copy(nobody, BatchView<const S>{}, BatchView<S>{}, nullptr);
  const deq::detail::AnySampleWork then;
  B::residual(nobody, BatchView<const S>{}, BatchView<const S>{}, BatchView<S>{}, nullptr, nullptr,
              BasisView<const S>{}, nullptr, nullptr, then);
  B::extend(nobody, BasisView<S>{}, nullptr, nullptr, nullptr, BatchView<const S>{}, nullptr);
  B::step(nobody, BasisView<S>{}, nullptr, nullptr, nullptr, BatchView<const S>{}, nullptr,
          BatchView<S>{}, BatchView<S>{}, nullptr, nullptr, then);
  B::for_each_team(nobody, then);
  B::rotate(nobody, BasisView<S>{}, 0, nullptr, nullptr);
  B::fill(nullptr, 0, S(1));
}

TEST_CASE_TEMPLATE("A dense system is solved with pivoting", B, DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  // Column-major; the first pivot is 0.
  auto matrix = numbers<B>({0, 2, 1, 1, 1, 0, 3, 0, 4});
  auto rhs = numbers<B>({1 * 2 + 3 * -1.0, 2 * 1 + 1 * 2.0, 1 + 4 * -1.0});  // A (1, 2, -1)
  B::solve_dense(3, matrix.data(), rhs.data());
  const std::vector<double> expected{1, 2, -1};
  for (std::size_t i = 0; i < 3; ++i)
    CHECK(static_cast<double>(rhs.now()[i]) ==
          doctest::Approx(expected[i]).epsilon(std::is_same_v<S, float> ? 1e-5 : 1e-13));
}

namespace {

/// Everything that reduces or combines, for the given active samples; results side by side.
template <class B>
std::vector<typename B::Scalar> all_results(std::vector<Index> who, Index dim, Index samples) {
  using S = typename B::Scalar;
  constexpr Index capacity = 3;
  Mirror<B, Index> ids(who), rank(std::vector<Index>(at(samples), capacity)),
      zero(std::vector<Index>(at(samples), 0)), slot(std::vector<Index>(at(samples), 1));
  const Samples a{ids.data(), static_cast<Index>(who.size())};
  auto x = random_batch<B>(dim * samples, 30), y = random_batch<B>(dim * samples, 31),
       f = random_batch<B>(dim * samples, 32), h = random_batch<B>(dim * capacity * samples, 33),
       g = random_batch<B>(dim * samples, 34);
  Mirror<B> packed(std::vector<S>(at(dim * a.count))), out(std::vector<S>(at(5 * samples))),
      c(std::vector<S>(at(capacity * samples)));
  B::gather(a, f.batch(dim), packed.batch(dim));
  B::residual(a, packed.batch(dim), x.batch(dim), g.batch(dim), out.data(), out.data() + samples);
  B::dot(a, x.batch(dim), y.batch(dim), out.data() + 2 * samples);
  B::axpby(a, S(0.3), BatchView<const S>(x.batch(dim)), S(0.7), y.batch(dim));
  B::project(a, h.basis(dim, capacity), rank.data(), y.batch(dim), c.data());
  B::combine(a, h.basis(dim, capacity), rank.data(), c.data(), S(1),
             BatchView<const S>(y.batch(dim)), y.batch(dim));
  B::residual(a, packed.batch(dim), x.batch(dim), g.batch(dim), out.data(), out.data() + samples,
              h.basis(dim, capacity), rank.data(), c.data(), deq::detail::AnySampleWork{});
  B::extend(a, h.basis(dim, capacity), rank.data(), c.data(), out.data() + 2 * samples,
            g.batch(dim), zero.data());
  const Flags<B> where(std::vector<bool>(at(samples), true));
  B::step(a, h.basis(dim, capacity), rank.data(), c.data(), out.data() + 2 * samples,
          packed.batch(dim), slot.data(), y.batch(dim), x.batch(dim), where.data(),
          out.data() + 3 * samples, deq::detail::AnySampleWork{});
  std::vector<S> results;
  for (const auto& part : {g.now(), out.now(), c.now(), y.now(), x.now(), h.now()})
    results.insert(results.end(), part.begin(), part.end());
  return results;
}

/// The part of all_results that belongs to sample s.
template <class S>
std::vector<S> of_sample(const std::vector<S>& all, Index s, Index dim, Index samples) {
  std::vector<S> mine;
  const S* p = all.data();
  mine.insert(mine.end(), p + s * dim, p + (s + 1) * dim);
  p += dim * samples;
  for (Index i = 0; i < 4; ++i) mine.push_back(p[i * samples + s]);
  p += 5 * samples;
  mine.insert(mine.end(), p + 3 * s, p + 3 * s + 3);
  p += 3 * samples;
  for (const Index size : {dim, dim, 3 * dim}) {
    mine.insert(mine.end(), p + s * size, p + (s + 1) * size);
    p += size * samples;
  }
  return mine;
}

struct ThreadCount {
  explicit ThreadCount(int threads) : before(num_threads()) { set_num_threads(threads); }
  ~ThreadCount() { set_num_threads(before); }
  int before;
};

}  // namespace

TEST_CASE_TEMPLATE("A sample's bits do not depend on its company, nor on the number of threads", B,
                   DEQ_CONTRACT_BACKENDS) {
  using S = typename B::Scalar;
  constexpr Index samples = 4;
  for (const Index dim : {Index(5), Index(2100), Index(20000)}) {
    std::vector<S> everybody;
    {
      const ThreadCount one(1);
      everybody = all_results<B>({0, 1, 2, 3}, dim, samples);
    }
    const ThreadCount two(2);
    for (int subset = 1; subset < 16; ++subset) {
      std::vector<Index> who;
      for (Index s = 0; s < samples; ++s)
        if (subset & (1 << s)) who.push_back(s);
      const std::vector<S> some = all_results<B>(who, dim, samples);
      for (const Index s : who) {
        const auto mine = of_sample(some, s, dim, samples);
        const auto full = of_sample(everybody, s, dim, samples);
        CHECK(same_bits(mine.data(), full.data(), static_cast<Index>(mine.size())));
      }
    }
  }
}
