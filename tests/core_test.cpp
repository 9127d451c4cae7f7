// SPDX-License-Identifier: MIT
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

// Where the memory of a program can be limited: sanitizers need terabytes.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DEQ_TEST_LIMITS
#endif
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#undef DEQ_TEST_LIMITS
#endif
#endif
#ifdef DEQ_TEST_LIMITS
#include <sys/resource.h>
#include <unistd.h>
#endif

#include <doctest/doctest.h>

#include <deq/core/bfloat16.hpp>
#include <deq/core/error.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/core/parallel.hpp>
#include <deq/core/random.hpp>
#include <deq/core/report.hpp>
#include <deq/core/shape.hpp>
#include <deq/core/types.hpp>

#include "support/threads.hpp"

using deq::Index;
using deq::Purpose;
using deq::Random;
using deq::Shape;
using deq_test::Threads;

namespace {

using Bits4 = std::array<std::uint32_t, 4>;

/// What `f` throws; empty if it throws nothing.
template <class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const deq::Error& error) {
    return error.what();
  }
  return {};
}

/// How often parallel_for called its body with each index.
std::vector<int> visits(Index n) {
  std::vector<std::atomic<int>> count(static_cast<std::size_t>(n));
  deq::parallel_for(n, [&](Index i) { ++count[static_cast<std::size_t>(i)]; });
  return {count.begin(), count.end()};
}

}  // namespace

// Random ------------------------------------------------------------------------------------------

TEST_CASE("philox4x32-10 gives the known answers of Random123") {
  constexpr std::uint32_t ones = 0xffffffff;
  CHECK(deq::philox({0, 0, 0, 0}, {0, 0}) == Bits4{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(deq::philox({ones, ones, ones, ones}, {ones, ones}) ==
        Bits4{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(deq::philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Bits4{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("a stream is philox of its name, block after block") {
  Random random(0x0123456789abcdef, Purpose::dropout, 7, 11);
  for (std::uint32_t block = 0; block < 3; ++block) {
    const Bits4 expected = deq::philox({block, 11, 7, static_cast<std::uint32_t>(Purpose::dropout)},
                                       {0x89abcdef, 0x01234567});
    for (const std::uint32_t bits : expected) CHECK(random.bits() == bits);
  }
}

TEST_CASE("streams that differ in one part of their name differ, the same name repeats") {
  const auto first = [](Random random) { return std::array{random.bits(), random.bits()}; };
  const Random base(5, Purpose::user, 1, 2);
  const std::set<std::array<std::uint32_t, 2>> distinct{
      first(base),
      first({6, Purpose::user, 1, 2}),
      first({5 + (std::uint64_t{1} << 32), Purpose::user, 1, 2}),
      first({5, Purpose::shuffle, 1, 2}),
      first({5, Purpose::user, 2, 2}),
      first({5, Purpose::user, 1, 3}),
      first({5, Purpose::user, 2, 1})};
  CHECK(distinct.size() == 7);
  CHECK(first(base) == first({5, Purpose::user, 1, 2}));
}

TEST_CASE("moments of uniform and normal numbers, within four standard errors") {
  constexpr int n = 200'000;
  Random random(1, Purpose::user);
  double sum = 0, sum_squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = random.uniform();
    REQUIRE((u >= 0 && u < 1));
    sum += u;
    sum_squares += u * u;
  }
  CHECK(std::abs(sum / n - 0.5) < 4 * std::sqrt(1 / 12.0 / n));
  CHECK(std::abs(sum_squares / n - 1 / 3.0) < 4 * std::sqrt(4 / 45.0 / n));

  std::array<double, 5> moment{};
  for (int i = 0; i < n; ++i) {
    const double x = random.normal();
    for (std::size_t k = 1; k <= 4; ++k) moment[k] += std::pow(x, k) / n;
  }
  CHECK(std::abs(moment[1]) < 4 * std::sqrt(1.0 / n));       // Var x = 1
  CHECK(std::abs(moment[2] - 1) < 4 * std::sqrt(2.0 / n));   // Var x^2 = 2
  CHECK(std::abs(moment[3]) < 4 * std::sqrt(15.0 / n));      // Var x^3 = 15
  CHECK(std::abs(moment[4] - 3) < 4 * std::sqrt(96.0 / n));  // Var x^4 = 105 - 9
}

TEST_CASE("neighbouring streams are uncorrelated") {
  constexpr std::uint32_t n = 50'000;
  double samples = 0, steps = 0, purposes = 0;
  for (std::uint32_t i = 0; i < n; ++i) {
    const double x = Random(3, Purpose::user, 0, i).normal();
    samples += x * Random(3, Purpose::user, 0, i + 1).normal() / n;
    steps += x * Random(3, Purpose::user, 1, i).normal() / n;
    purposes += x * Random(3, Purpose::probe, 0, i).normal() / n;
  }
  const double bound = 4 / std::sqrt(double{n});
  CHECK(std::abs(samples) < bound);
  CHECK(std::abs(steps) < bound);
  CHECK(std::abs(purposes) < bound);
}

TEST_CASE("below(n) reaches all of {0, ..., n - 1} evenly, uniform(a, b) stays inside") {
  Random random(2, Purpose::shuffle);
  std::array<int, 6> count{};
  for (int i = 0; i < 60'000; ++i) ++count.at(random.below(6));
  for (const int c : count) CHECK(std::abs(c - 10'000) < 4 * std::sqrt(60'000 * 5 / 36.0));
  CHECK(random.below(1) == 0);
  for (int i = 0; i < 1000; ++i) {
    const double u = random.uniform(-3, -2);
    CHECK((u >= -3 && u < -2));
  }
}

// Shape -------------------------------------------------------------------------------------------

TEST_CASE("shape: rank, extents, sizes") {
  const Shape shape{2, 3, 4, 5};
  CHECK(shape.rank() == 4);
  CHECK(shape[0] == 2);
  CHECK(shape[-1] == 5);
  CHECK(shape[-4] == 2);
  CHECK(shape.size() == 120);
  CHECK(shape.product(1, 3) == 12);
  CHECK(shape.product(2, 2) == 1);
  CHECK(shape.extents().size() == 4);
  CHECK(deq::message(shape) == "(2, 3, 4, 5)");

  CHECK(Shape{}.rank() == 0);
  CHECK(Shape{}.size() == 1);
  CHECK(deq::message(Shape{}) == "()");
  CHECK(Shape{3, 0, 2}.size() == 0);
}

TEST_CASE("shape: equality needs the same rank and extents") {
  CHECK(Shape{2, 3} == Shape{2, 3});
  CHECK(Shape{2, 3} != Shape{3, 2});
  CHECK(Shape{2, 3} != Shape{2, 3, 1});
  Shape changed{2, 3};
  changed[-1] = 4;
  CHECK(changed == Shape{2, 4});
}

TEST_CASE("shape: misuse is a ShapeError that says what came") {
  CHECK_THROWS_AS((Shape{1, 1, 1, 1, 1, 1, 1}), deq::ShapeError);
  CHECK(message_of([] { Shape{1, 1, 1, 1, 1, 1, 1}; }) == "Shape: at most 6 dimensions, got 7");
  CHECK(message_of([] { Shape{2, -3}; }) == "Shape: extent 1 is negative: -3");
  constexpr Index large = Index{1} << 32;
  CHECK(message_of([] {
          Shape{large, large};
        }) == "Shape: the extents of (4294967296, 4294967296) multiply to 2^63 or more");
  CHECK_THROWS_AS((Shape{0, large, large / 2}), deq::ShapeError);  // product(1, 3) has no number
  CHECK(Shape{large, 0, large / 4}.size() == 0);
  CHECK(Shape{std::numeric_limits<Index>::max()}.size() == std::numeric_limits<Index>::max());
}

// Errors, views, reports --------------------------------------------------------------------------

TEST_CASE("require throws its exception with all parts in the message") {
  CHECK_NOTHROW(deq::require(true, "never built"));
  CHECK_THROWS_AS(deq::require(false, "x"), deq::InvalidArgument);
  CHECK_THROWS_AS(deq::require<deq::FormatError>(false, "x"), deq::FormatError);
  CHECK_THROWS_AS(deq::require(false, "x"), std::runtime_error);
  CHECK(message_of([] {
          deq::require(false, "tolerance must be > 0, got ", -0.5, " in ", Shape{2});
        }) == "tolerance must be > 0, got -0.5 in (2)");
}

TEST_CASE("views address one contiguous column a sample") {
  std::array<double, 24> data{};
  const deq::BatchView<double> batch{data.data(), 3, 4};
  CHECK(batch.size() == 12);
  CHECK(batch.col(2) == data.data() + 6);
  CHECK(batch[3].size() == 3);
  CHECK(batch.columns(1, 2).col(1) == batch.col(2));
  const deq::BatchView<const double> read_only = batch;
  CHECK(read_only.col(3) == batch.col(3));

  const deq::BasisView<double> basis{data.data(), 3, 2};
  CHECK(basis.vec(3, 1) == data.data() + 21);
}

TEST_CASE("a report counts and averages over its samples") {
  deq::SolveReport report;
  CHECK(report.mean_iterations() == 0);
  report.samples.resize(2);
  report.samples[0].status = deq::SolveStatus::converged;
  report.samples[0].iterations = 4;
  report.samples[0].relative = 1e-4;
  CHECK(report.samples[0].converged());
  CHECK_FALSE(report.all_converged());
  report.samples[1] = {.status = deq::SolveStatus::stalled, .iterations = 9, .relative = 1e-2};
  CHECK(report.count(deq::SolveStatus::stalled) == 1);
  CHECK(report.mean_iterations() == doctest::Approx(6.5));
  CHECK(report.max_iterations() == 9);
  CHECK(report.worst_relative() == 1e-2);
  for (deq::SampleReport& sample : report.samples) {
    const double number = std::exchange(sample.relative, std::nan(""));
    CHECK(std::isnan(report.worst_relative()));
    sample.relative = number;
  }
  CHECK(report.worst_relative() == 1e-2);
  CHECK(name(deq::SolveStatus::non_finite) == "non-finite");
}

// parallel_for ------------------------------------------------------------------------------------

TEST_CASE("parallel_for calls its body once with every index, for any number of threads") {
  for (const int threads : {1, 2, 3, 7, 2}) {
    const Threads scope(threads);
    CHECK(deq::num_threads() == threads);
    for (const Index n : {0, 1, 2, 5, 1000}) {
      CAPTURE(threads);
      CAPTURE(n);
      CHECK(visits(n) == std::vector<int>(static_cast<std::size_t>(n), 1));
    }
  }
}

TEST_CASE("parallel_for works on other threads, unless asked to stay") {
  const Threads scope(3);
  // Each piece waits for the other two: this only ends if three threads are at work.
  std::atomic<int> arrived{0};
  deq::parallel_for(3, [&](Index) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
  });
  CHECK(arrived == 3);

  std::vector<std::thread::id> ids(20);
  deq::parallel_for(
      20, [&](Index i) { ids[static_cast<std::size_t>(i)] = std::this_thread::get_id(); }, true);
  for (const std::thread::id id : ids) CHECK(id == std::this_thread::get_id());
}

#ifdef DEQ_TEST_LIMITS
TEST_CASE("parallel_for goes on with the threads that the system gives") {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  statm >> pages;
  REQUIRE(pages > 0);
  rlimit limit{};
  REQUIRE(getrlimit(RLIMIT_AS, &limit) == 0);
  rlimit tight = limit;  // the stacks of a few threads
  tight.rlim_cur = pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE)) + (rlim_t{64} << 20);
  const Threads scope(100);
  REQUIRE(setrlimit(RLIMIT_AS, &tight) == 0);
  std::vector<int> first, second;
  std::string error;
  try {
    first = visits(1000);
    second = visits(1000);
  } catch (const std::exception& e) {
    error = e.what();
  }
  REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  CHECK(error.empty());
  CHECK(first == std::vector<int>(1000, 1));
  CHECK(second == first);
  CHECK(deq::num_threads() == 100);
}
#endif

TEST_CASE("parallel_for: a nested loop runs on the thread that it is called from") {
  const Threads scope(4);
  std::atomic<int> calls{0}, elsewhere{0};
  deq::parallel_for(8, [&](Index) {
    const std::thread::id here = std::this_thread::get_id();
    deq::parallel_for(8, [&](Index) {
      ++calls;
      if (std::this_thread::get_id() != here) ++elsewhere;
    });
  });
  CHECK(calls == 64);
  CHECK(elsewhere == 0);
  CHECK_FALSE(deq::detail::inside_parallel);
}

TEST_CASE("parallel_for never waits for a team that is at work for another thread") {
  const Threads scope(2);
  // One thread holds a lock while it begins a loop, which the team's work for another waits for.
  std::mutex held;
  std::atomic<bool> locked = false, team_at_work = false;
  std::atomic<int> calls = 0;
  std::thread other([&] {
    const std::lock_guard lock(held);
    locked = true;
    while (!team_at_work) std::this_thread::yield();
    deq::parallel_for(10, [&](Index) { ++calls; });
  });
  while (!locked) std::this_thread::yield();
  deq::parallel_for(2, [&](Index) {
    team_at_work = true;
    const std::lock_guard lock(held);
    ++calls;
  });
  other.join();
  CHECK(calls == 12);
}

TEST_CASE("parallel_for rethrows an exception, and is as good as new afterwards") {
  for (const int threads : {1, 4}) {
    const Threads scope(threads);
    for (int round = 0; round < 20; ++round) {
      const auto fails_at_17 = [](Index i) { deq::require(i != 17, "piece ", i, " is broken"); };
      CHECK(message_of([&] { deq::parallel_for(50, fails_at_17); }) == "piece 17 is broken");
      CHECK(visits(50) == std::vector<int>(50, 1));
    }
    // Out of a nested loop as well.
    const auto nested = [](Index) {
      deq::parallel_for(2, [](Index) { throw deq::ShapeError("inner"); });
    };
    CHECK(message_of([&] { deq::parallel_for(4, nested); }) == "inner");
  }
}

TEST_CASE("parallel_for: pieces that wait for those of a lower index do not wait long") {
#ifndef DEQ_WITH_OPENMP
  constexpr int threads = 3;
  const Threads scope(threads);
  std::atomic<Index> done = 0, furthest = 0;
  deq::parallel_for(100, [&](Index i) {
    const Index ahead = i - done;
    for (Index seen = furthest; seen < ahead && !furthest.compare_exchange_weak(seen, ahead);) {
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    while (done != i) std::this_thread::yield();
    ++done;
  });
  CHECK(done == 100);
  CHECK(furthest < threads);
#endif
}

TEST_CASE("parallel_for may be called from several threads at once") {
  const Threads scope(3);
  std::atomic<Index> sum{0};
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t)
    callers.emplace_back([&] {
      for (int round = 0; round < 50; ++round) deq::parallel_for(100, [&](Index i) { sum += i; });
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(sum == 4 * 50 * 4950);
}

TEST_CASE("set_num_threads refuses less than one thread") {
  CHECK(message_of([] { deq::set_num_threads(0); }) ==
        "set_num_threads: threads must be >= 1, got 0");
}

TEST_CASE("a thread gets the memory that it gave back itself, before any other") {
  auto& pool = deq::HostPool::instance();
  constexpr std::size_t bytes = 12345678;  // a size that nobody else has
  void* const mine = pool.acquire(bytes);
  void* others[2] = {};
  // Two threads, since one in several may share a shelf with this thread.
  for (void*& block : others) std::thread([&] { block = pool.acquire(bytes); }).join();
  pool.release(mine, bytes);
  bool own = false;
  for (void* const block : others) {
    std::thread([&] { pool.release(block, bytes); }).join();
    void* const got = pool.acquire(bytes);
    own = own || got == mine;
    pool.release(got, bytes);
  }
  CHECK(own);

  // The rest is there as well.
  const auto requests = pool.system_requests();
  void* const all[3] = {pool.acquire(bytes), pool.acquire(bytes), pool.acquire(bytes)};
  CHECK(pool.system_requests() == requests);
  for (void* const block : all) pool.release(block, bytes);
  pool.trim();
}

TEST_CASE("a large request takes a free block of up to twice its size, which keeps its size") {
  auto& pool = deq::HostPool::instance();
  pool.trim();
  constexpr std::size_t size = 40'000'000;
  void* const block = pool.acquire(size);
  pool.release(block, size);
  const auto requests = pool.system_requests();
  void* const part = pool.acquire(size / 2 + size / 8);
  CHECK(part == block);
  pool.release(part, size / 2 + size / 8);
  void* const again = pool.acquire(size);  // it is not taken for a smaller one
  CHECK(again == block);
  CHECK(pool.system_requests() == requests);
  void* const other = pool.acquire(size / 4);  // too small to have had the block
  CHECK(pool.system_requests() == requests + 1);
  pool.release(again, size);
  void* const small = pool.acquire(size / 4);
  CHECK(small != block);
  pool.release(other, size / 4);
  pool.release(small, size / 4);
  pool.trim();
}

TEST_CASE("Bfloat16 rounds to the nearest, ties to even, and keeps what is no number") {
  const auto rounded = [](float x) { return static_cast<float>(deq::Bfloat16(x)); };
  for (const float x : {0.f, 1.f, -1.f, 0.5f, 256.f, -3.140625f, 0x1p-126f, 0x1p-133f})
    CHECK(rounded(x) == x);
  CHECK(rounded(1 + 0x1p-9f) == 1);                // below the middle
  CHECK(rounded(1 + 0x1p-8f) == 1);                // the middle: to even
  CHECK(rounded(1 + 3 * 0x1p-8f) == 1 + 0x1p-6f);  // the middle: to even
  CHECK(rounded(1 + 0x1p-8f + 0x1p-20f) == 1 + 0x1p-7f);
  CHECK(rounded(-1 - 0x1p-8f - 0x1p-20f) == -1 - 0x1p-7f);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  CHECK(rounded(std::numeric_limits<float>::max()) == infinity);
  CHECK(rounded(-infinity) == -infinity);
  CHECK(std::isnan(rounded(std::numeric_limits<float>::quiet_NaN())));
  CHECK(std::isnan(rounded(std::bit_cast<float>(0x7f800001u))));
  CHECK(std::signbit(rounded(-0.f)));
  CHECK(static_cast<float>(deq::Bfloat16(1.0 / 3)) == 0x1.56p-2f);
}

TEST_CASE("Bfloat16 rounds a double once") {
  const auto rounded = [](double x) { return static_cast<float>(deq::Bfloat16(x)); };
  constexpr double infinity = std::numeric_limits<double>::infinity(), tiny = 0x1p-60;
  for (const double sign : {1.0, -1.0})
    // Two neighbours, the even one first, and a middle that no float between it and x could tell.
    for (const auto& [even, odd] : {std::pair{1.0, 1 + 0x1p-7},
                                    {1 + 0x1p-6, 1 + 0x1p-7},
                                    {0x1p-132, 0x1p-133},
                                    {0.0, 0x1p-133}}) {
      const double middle = (even + odd) / 2, step = (odd - even) * 0x1p-30;
      CHECK(rounded(sign * even) == sign * even);
      CHECK(rounded(sign * odd) == sign * odd);
      CHECK(rounded(sign * middle) == sign * even);
      CHECK(rounded(sign * (middle + step)) == sign * odd);
      CHECK(rounded(sign * (middle - step)) == sign * even);
      CHECK(rounded(sign * (even + step)) == sign * even);
    }
  // The largest is (2 - 2^-7) 2^127; what is nearer to 2^128, or half-way, is infinite.
  constexpr double half_way = (2 - 0x1p-8) * 0x1p127;
  CHECK(rounded(half_way) == infinity);
  CHECK(rounded(half_way * (1 - 0x1p-50)) == 0x1.fep127f);
  CHECK(rounded(std::numeric_limits<double>::max()) == infinity);
  CHECK(rounded(-std::numeric_limits<double>::max()) == -infinity);
  CHECK(rounded(-infinity) == -infinity);
  CHECK(std::isnan(rounded(std::nan(""))));
  CHECK(rounded(tiny * 0x1p-1000) == 0);
  CHECK(std::signbit(rounded(-tiny * 0x1p-1000)));
  CHECK(std::signbit(rounded(-0.0)));
}
