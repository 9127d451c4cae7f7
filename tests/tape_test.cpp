// SPDX-License-Identifier: MIT
// deq/tape/tensor.hpp and deq/tape/record.hpp: handles, recording, replaying, pruning. The
// operations are tested in ops_*_test.cpp.
#include <array>
#include <atomic>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include "support/gradient_check.hpp"

using namespace deq_test;

using B = deq::Cpu<double>;
using Tape = deq::Tape<B>;
using Var = deq::Var<B>;

namespace {

std::atomic<long> allocations = 0;

/// What the system has been asked for so far: by the pool, and past it.
struct Requests {
  std::uint64_t pool = deq::HostPool::instance().system_requests();
  long other = allocations;
  friend bool operator==(const Requests&, const Requests&) = default;
};

/// The gradients of <cotangent, y>, into new tensors.
template <std::same_as<Var>... X>
std::array<Tensor, sizeof...(X)> gradients(Tape& tape, const Var& y, const Tensor& cotangent,
                                           const X&... x) {
  const std::array<Var, sizeof...(X)> wrt{x...};
  const std::array<Tensor, sizeof...(X)> into{Tensor(x.shape(), not_a_number)...};
  tape.vjp(y, cotangent, wrt, into);
  return into;
}

/// y = a + 10 b, which counts what it is asked for.
struct Calls {
  int vjp = 0, to_a = 0, to_b = 0;
  friend bool operator==(const Calls&, const Calls&) = default;
};
struct Counted {
  static constexpr bool saves_inputs = false, saves_output = false;
  Calls* calls;

  Tensor forward(const Tensor& a, const Tensor& b) const { return a + 10 * b; }
  void vjp(const deq::Reverse<B>& r) const {
    ++calls->vjp;
    if (r.grad[0]) ++calls->to_a, r.grad[0].add(r.cotangent);
    if (r.grad[1]) ++calls->to_b, r.grad[1].add(10 * r.cotangent);
  }
};
template <deq::TensorLike X, deq::TensorLike Y>
auto counted(Calls& calls, const X& a, const Y& b) {
  return deq::record(Counted{&calls}, a, b);
}

/// An operation as its documentation tells one to write it; `slope` makes it a wrong one.
template <class Backend>
struct Cube {
  using S = typename Backend::Scalar;
  static constexpr bool saves_inputs = true, saves_output = false;
  S slope = 3;

  deq::Tensor<Backend> forward(const deq::Tensor<Backend>& x) {
    deq::Tensor<Backend> y(x.shape());
    elementwise(
        Backend{}, x.size(), [](S a) { return a * a * a; }, y.data(), x.data());
    return y;
  }
  void vjp(const deq::Reverse<Backend>& r) const {
    if (r.grad[0])
      r.grad[0].write([s = slope](S c, S x) { return s * x * x * c; }, r.cotangent.data(),
                      r.input[0].data());
  }
};
template <deq::TensorLike X>
auto cube(const X& x) {
  return deq::record(Cube<typename X::Backend>{}, x);
}

/// The sum of a list, which keeps nothing but its length.
struct SumOfList {
  static constexpr bool saves_inputs = false, saves_output = false;
  Tensor forward(std::span<const Tensor> xs) const {
    Tensor y = xs[0].clone();
    for (const Tensor& x : xs.subspan(1)) y = y + x;
    return y;
  }
  void vjp(const deq::Reverse<B>& r) const {
    for (const deq::Sink<B>& sink : r.grad)
      if (sink) sink.add(r.cotangent);
  }
};

/// Something of everything: products, statistics, shared values, a change of shape.
const auto network = [](const auto& x, const auto& w, const auto& b) {
  const auto h = tanh(conv2d(x, w, b, {.padding = 1}));
  const auto normal = group_norm(h * sigmoid(h) + x, 1);
  return linear(flatten(normal), flatten(scale(normal, 0.1)));
};
Tensor network_x() { return random_tensor({2, 2, 2, 3}, 1); }
Tensor network_w() { return random_tensor({2, 2, 3, 3}, 2); }
Tensor network_b() { return random_tensor({2}, 3); }

}  // namespace

// Counts what does not go through the pool. Out of line, as g++ takes a malloc that it sees in one
// of them without the free in the other for a mistake.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }

// Tensors -----------------------------------------------------------------------------------------

TEST_CASE("a tensor is a handle: copies share memory, clones do not") {
  Tensor a({2, 3}, {1, 2, 3, 4, 5, 6});
  CHECK(a.unique());
  {
    const Tensor copy = a;
    CHECK_FALSE(a.unique());
    CHECK(copy.data() == a.data());
    const Tensor clone = a.clone();
    CHECK(clone.unique());
    a.data()[0] = 7;
    CHECK(at(copy, 0, 0) == 7);
    CHECK(at(clone, 0, 0) == 1);
  }
  CHECK(a.unique());
  Tensor moved = std::move(a);
  CHECK(moved.unique());
  moved = moved.rows(1, 1);  // the memory outlives the handle that it was made with
  CHECK(moved.to_host() == std::vector<double>{4, 5, 6});
}

TEST_CASE("an alias keeps the numbers, and is never alone with them") {
  Tensor a({2}, {1, 2});
  Tensor alias = a.alias();
  CHECK(alias.data() == a.data());
  CHECK_FALSE(a.unique());
  const Tensor copy = alias, of_alias = alias.alias();
  alias = {};
  CHECK_FALSE(a.unique());  // copies of an alias hold on to it
  a = {};
  CHECK_FALSE(copy.unique());  // the tape writes nothing in place that it cannot account for
  CHECK(of_alias.to_host() == std::vector<double>{1, 2});
  CHECK_FALSE(Tensor().alias());
}

TEST_CASE("a handle without numbers has no element, wherever it comes from") {
  Tensor source(Shape{}, 3);
  const Tensor taken = std::move(source);
  for (const Tensor& empty : {Tensor(), source, Tensor().clone(), Tensor().alias()}) {
    CHECK_FALSE(empty);
    CHECK(empty.size() == 0);
    CHECK(empty.shape() == Shape{0});
    CHECK(empty.batch().count == 0);
    CHECK(empty.to_host().empty());
    CHECK_FALSE(empty.clone());
    check_error<deq::ShapeError>([&] { empty.item(); }, {"item", "(0)"});
  }
  // Where a number is expected, nothing is none.
  Tape tape;
  const Var x = tape.input(taken), y = square(x);
  const std::array into{Tensor(Shape{}, 0)}, nowhere{Tensor()};
  const auto vjp = [&](const Tensor& cotangent, std::span<const Tensor> gradients) {
    tape.vjp(y, cotangent, std::span(&x, 1), gradients);
  };
  check_error<deq::ShapeError>([&] { vjp(source, into); }, {"cotangent", "(0)", "()"});
  check_error<deq::ShapeError>([&] { vjp(taken, nowhere); }, {"gradient", "(0)", "()"});
}

TEST_CASE("tensors: nothing, one number, parts, views, batches") {
  CHECK_FALSE(Tensor());
  CHECK(Tensor({0, 3}));
  CHECK(Tensor({0, 3}).to_host().empty());
  CHECK(Tensor(Shape{}, 3).item() == 3);
  const Tensor a({3, 2}, {1, 2, 3, 4, 5, 6});
  CHECK(a.rows(1, 2).data() == a.data() + 2);
  CHECK(a.rows(1, 2).shape() == Shape{2, 2});
  CHECK(a.reshaped({6}).data() == a.data());
  CHECK(a.batch().dim == 2);
  CHECK(a.batch().count == 3);
  CHECK(a.batch().col(2)[1] == 6);

  std::array<double, 2> mine{1, 2};
  const Tensor view = Tensor::view(mine.data(), {2});
  CHECK_FALSE(view.unique());  // somebody else's memory is never written in place
  mine[1] = 5;
  CHECK(view.to_host() == std::vector<double>{1, 5});

  check_error<deq::ShapeError>([] { Tensor({2, 3}, {1, 2}); }, {"(2, 3)", "6", "2"});
  check_error<deq::ShapeError>([&] { a.reshaped({5}); }, {"reshape", "(3, 2)", "(5)"});
  check_error<deq::ShapeError>([&] { a.item(); }, {"item", "(3, 2)"});
  CHECK(a.rows(3, 0).shape() == Shape{0, 2});
  for (const auto& [first, n] : {std::array<Index, 2>{2, 2}, {-1, 1}, {1, -1}, {4, 0}})
    check_error<deq::ShapeError>([&a, f = first, c = n] { a.rows(f, c); }, {"rows", "(3, 2)"});
  check_error<deq::ShapeError>([] { Tensor(Shape{}, 1).rows(0, 1); }, {"rows", "()"});
  // Its bytes, counted modulo 2^64, would be none.
  check_error<deq::ShapeError>([] { Tensor(Shape{Index{1} << 61}); }, {"(2305843009213693952)"});
}

// Recording and replaying -------------------------------------------------------------------------

TEST_CASE("one f, two readings: tensors compute, variables record") {
  const Tensor x = network_x(), w = network_w(), b = network_b();
  static_assert(std::same_as<decltype(network(x, w, b)), Tensor>);
  Tape tape;
  const Var vx = tape.input(x);
  CHECK(tape.size() == 1);
  CHECK(vx.value().data() == x.data());  // not copied
  const auto y = network(vx, w, b);      // one variable is enough
  static_assert(std::same_as<decltype(y), const Var>);
  CHECK(y.tape() == &tape);
  CHECK(tape.size() == y.id() + 1);
  CHECK(same_bits(y.value(), network(x, w, b)));
}

TEST_CASE("VJPs of a whole network") {
  gradient_check("network", network, network_x(), network_w(), network_b());
}

TEST_CASE("replaying and recording again ask the system for nothing") {
  const Tensor x = network_x(), w = network_w(), b = network_b();
  const Tensor cotangents[]{random_tensor({2, 2}, 4), random_tensor({2, 2}, 5)};
  Tape tape;
  std::array<Var, 3> leaves;
  const std::array<Tensor, 3> into{x.clone(), w.clone(), b.clone()};
  const auto record_and_replay = [&] {
    tape.clear();
    leaves = {tape.input(x), tape.input(w), tape.input(b)};
    const Var y = network(leaves[0], leaves[1], leaves[2]);
    for (const Tensor& c : cotangents) {
      tape.vjp(y, c, leaves, into);
      tape.vjp(y, c, std::span(&leaves[1], 1), std::span(&into[1], 1));
      tape.vjp(y, c, leaves, into, true);
    }
  };
  // The second round: the first one's last variables are let go of while the new ones are made.
  record_and_replay();
  record_and_replay();
  const Requests before;
  for (int i = 0; i < 5; ++i) record_and_replay();
  CHECK(Requests() == before);
}

TEST_CASE("clear forgets everything that was recorded") {
  Tape tape;
  const Tensor x({2}, 3);
  {
    const Var y = square(tape.input(x));
    tape.clear();
  }
  CHECK(tape.size() == 0);
  CHECK(x.unique());  // no record holds on to it
  const Var v = tape.input(x);
  CHECK(gradients(tape, scale(v, 2), Tensor({2}, 1), v)[0].to_host() == std::vector<double>{2, 2});
}

/// The identity, whose VJP notes whether anybody else still holds a tensor.
struct Watch {
  static constexpr bool saves_inputs = false, saves_output = false;
  const Tensor* watched;
  bool* alone;

  Tensor forward(const Tensor& x) const { return x; }
  void vjp(const deq::Reverse<B>& r) const {
    *alone = watched->unique();
    r.grad[0].add(r.cotangent);
  }
};

TEST_CASE("the last VJP is a VJP, forgets every operation as it goes, and leaves the tape clear") {
  Tape tape;
  const Tensor x = random_tensor({5}, 1), one({5}, 1);
  Tensor of_sin;
  bool alone = false;
  const auto both = [&] {
    const Var leaf = tape.input(x), y = sin(record(Watch{&of_sin, &alone}, leaf));
    of_sin = y.value();
    return std::array{leaf, sin(y)};  // saves what of_sin holds
  };
  const Tensor expected(x.shape()), gradient(x.shape());
  {
    const auto [leaf, y] = both();
    tape.vjp(y, one, std::span(&leaf, 1), std::span(&expected, 1));
    CHECK_FALSE(alone);
    CHECK(tape.size() == 4);
  }
  tape.clear();
  const auto [leaf, y] = both();
  tape.vjp_and_clear(y, one, std::span(&leaf, 1), std::span(&gradient, 1));
  CHECK(alone);
  CHECK(tape.size() == 0);
  CHECK(same_bits(gradient, expected));
}

TEST_CASE("a shared subexpression: one VJP, however many uses") {
  const Tensor a({3}, {1, 2, 3}), b({3}, {-1, 0, 2}), c({3}, {1, -1, 2});
  Tape tape;
  Calls calls;
  const Var va = tape.input(a), vb = tape.input(b);
  const Var h = counted(calls, va, vb);
  const Var y = h * h + h - scale(h, 3);  // h^2 - 2 h
  const auto g = gradients(tape, y, c, va, vb);
  const auto slope = [&](const Place& p) {
    return (2 * (at(a, p) + 10 * at(b, p)) - 2) * at(c, p);
  };
  check_values(g[0], {3}, slope);
  check_values(g[1], {3}, [&](const Place& p) { return 10 * slope(p); });
  CHECK(calls == Calls{1, 1, 1});
}

TEST_CASE("a value used twice by one operation") {
  const Tensor x({3}, {1, 2, 3}), c({3}, {1, -1, 2});
  const auto check = [&](auto f, std::vector<double> expected) {
    CHECK(Recorded(f, x).vjp(c).front().to_host() == expected);
  };
  check([](const auto& v) { return v + v; }, {2, -2, 4});
  check([](const auto& v) { return v - v; }, {0, 0, 0});
  check([](const auto& v) { return v * v; }, {2, -4, 12});
  check([](const auto& v) { return v / v; }, {0, 0, 0});
  check([](const auto& v) { return v * v * v + v; }, {4, -13, 56});
}

// Pruning -----------------------------------------------------------------------------------------

TEST_CASE("only what lies between the output and what is asked for is run") {
  Tape tape;
  Calls inner, outer, beside;
  const Var a = tape.input(Tensor({2}, 1)), b = tape.input(Tensor({2}, 2));
  const Var c = tape.input(Tensor({2}, 3)), cotangent({Tensor({2}, 1)});
  const Var h = counted(inner, a, b), y = counted(outer, h, c);
  counted(beside, y, a);  // recorded later: y does not depend on it

  const auto calls_of = [&](const auto&... wrt) {
    inner = outer = beside = {};
    gradients(tape, y, cotangent.value(), wrt...);
    CHECK(beside == Calls{});
    return std::array{inner, outer};
  };
  CHECK(calls_of(a) == std::array{Calls{1, 1, 0}, Calls{1, 1, 0}});
  CHECK(calls_of(b) == std::array{Calls{1, 0, 1}, Calls{1, 1, 0}});
  CHECK(calls_of(c) == std::array{Calls{}, Calls{1, 0, 1}});
  CHECK(calls_of(h) == std::array{Calls{}, Calls{1, 1, 0}});
  CHECK(calls_of(a, c) == std::array{Calls{1, 1, 0}, Calls{1, 1, 1}});
  CHECK(calls_of() == std::array{Calls{}, Calls{}});
}

TEST_CASE("gradients with respect to intermediate values, together with those of their inputs") {
  const Tensor x({2}, {0.5, -1}), c({2}, {1, 3});
  Tape tape;
  const Var v = tape.input(x), h = square(v), y = exp(h);
  const std::array found = gradients(tape, y, c, v, h, y);
  const Tensor &gx = found[0], &gh = found[1], &gy = found[2];
  CHECK(same_bits(gy, c));
  CHECK(gy.data() != c.data());  // the caller's memory was written, not replaced
  check_values(gh, {2}, [&](const Place& p) { return at(c, p) * std::exp(at(x, p) * at(x, p)); });
  check_values(gx, {2}, [&](const Place& p) { return 2 * at(x, p) * at(gh, p); });
}

TEST_CASE("an output that does not depend on a variable has gradient 0; adding it adds nothing") {
  Tape tape;
  const Var x = tape.input(Tensor({2}, 1)), other = tape.input(Tensor({3}, 1));
  const Var y = square(x), constant(Tensor({2}, 1));
  const Tensor c({2}, 1), into({3}, 7);
  tape.vjp(y, c, std::span(&other, 1), std::span(&into, 1), true);
  CHECK(same_bits(into, Tensor({3}, 7)));
  for (const Var& output : {y, constant, x})
    CHECK(same_bits(gradients(tape, output, c, other)[0], Tensor({3}, 0)));
  // Recorded after the output: it cannot matter.
  const Var later = tape.input(Tensor({3}, 1));
  CHECK(same_bits(gradients(tape, y, c, later)[0], Tensor({3}, 0)));
}

TEST_CASE("constants: a Var without a tape, a tensor, and what is computed from them") {
  Tape tape;
  const Tensor two({2}, 2), c({2}, 1);
  const Var x = tape.input(Tensor({2}, 3)), k(two);
  const Index size = tape.size();
  const Var k_squared = k * k;
  CHECK(k_squared.tape() == nullptr);
  CHECK(tape.size() == size);  // not recorded
  CHECK(k_squared.value().to_host() == std::vector<double>{4, 4});
  const Var ys[]{x * k, k * x, x * two, two * x, x * scale(k_squared, 0.5)};
  for (const Var& y : ys) CHECK(gradients(tape, y, c, x)[0].to_host() == std::vector<double>{2, 2});
}

TEST_CASE("a VJP writes to the gradients alone") {
  // Sums hand their cotangent on as it is: nobody who adds to it may change the caller's.
  const auto f = [](const auto& x) {
    const auto y = x + x;
    return y + reshape(y + x, {2, 2});
  };
  const Tensor x = random_tensor({2, 2}, 1), c({2, 2}, 1), before = x.clone();
  Recorded recorded(f, x);
  CHECK(recorded.vjp(c).front().to_host() == std::vector<double>{5, 5, 5, 5});
  CHECK(same_bits(c, Tensor({2, 2}, 1)));
  CHECK(same_bits(x, before));
  std::array<double, 4> mine{1, 1, 1, 1};  // no handle counts who sees this memory
  CHECK(recorded.vjp(Tensor::view(mine.data(), {2, 2})).front().to_host() ==
        std::vector<double>{5, 5, 5, 5});
  CHECK(mine == std::array<double, 4>{1, 1, 1, 1});
}

TEST_CASE("gradients accumulate over several VJPs") {
  Tape tape;
  const Var x = tape.input(Tensor({2}, {1, 2})), y = square(x);
  const Tensor into({2}, {100, 200});
  const auto add = [&](double c, bool accumulate) {
    tape.vjp(y, Tensor({2}, c), std::span(&x, 1), std::span(&into, 1), accumulate);
    return into.to_host();
  };
  CHECK(add(1, true) == std::vector<double>{102, 204});
  CHECK(add(2, true) == std::vector<double>{106, 212});
  CHECK(add(1, false) == std::vector<double>{2, 4});
}

// Misuse ------------------------------------------------------------------------------------------

TEST_CASE("a tape says what is wrong, and goes on working") {
  Tape tape, other;
  const Var x = tape.input(Tensor({2}, 1)), z = tape.input(Tensor({2}, 1)), y = x * z;
  const Var foreign = other.input(Tensor({2}, 1)), constant(Tensor({2}, 1));
  const Tensor two({2}, 1), three({3}, 1);
  const auto vjp = [&](const Var& output, const Tensor& cotangent, std::vector<Var> wrt,
                       std::vector<Tensor> into, bool accumulate = false) {
    return [=, &tape] { tape.vjp(output, cotangent, wrt, into, accumulate); };
  };
  check_error<deq::ShapeError>(vjp(y, three, {x}, {two}), {"cotangent", "(3)", "(2)"});
  check_error<deq::ShapeError>(vjp(y, two, {x}, {three}), {"gradient", "(3)", "(2)"});
  check_error<deq::InvalidArgument>(vjp(y, two, {x, z}, {two}), {"2 variables", "1 gradients"});
  check_error<deq::InvalidArgument>(vjp(y, two, {foreign}, {two}), {"not on this tape"});
  check_error<deq::InvalidArgument>(vjp(y, two, {constant}, {two}), {"not on this tape"});
  check_error<deq::InvalidArgument>(vjp(foreign, two, {x}, {two}), {"another tape"});
  check_error<deq::InvalidArgument>(vjp(y, two, {x, x}, {two, two}), {"twice"});
  check_error<deq::InvalidArgument>(vjp(y, two, {x, y}, {two, two}, true), {"leaves only"});
  check_error<deq::InvalidArgument>([&] { x + foreign; }, {"two tapes"});
  check_error<deq::InvalidArgument>(
      [&] {
        concat(0, std::vector<Var>{x, foreign});
      },
      {"two tapes"});
  CHECK(gradients(tape, y, two, x)[0].to_host() == std::vector<double>{1, 1});

  // A variable does not become what takes its place, on this tape or on one at the same address.
  tape.clear();
  const Var now = tape.input(two);
  tape.input(two);
  const Var twice = scale(now, 2);
  check_error<deq::InvalidArgument>(vjp(y, two, {now}, {two}), {"no longer"});
  check_error<deq::InvalidArgument>(vjp(twice, two, {x}, {two}), {"no longer"});
  check_error<deq::InvalidArgument>([&] { square(x); }, {"no longer"});
  check_error<deq::InvalidArgument>([&] { x + now; }, {"no longer"});
  CHECK(tape.holds(now));
  CHECK_FALSE(tape.holds(x));
  CHECK(x.value().to_host() == std::vector<double>{1, 1});  // its value is there as before
  CHECK(gradients(tape, twice, two, now)[0].to_host() == std::vector<double>{2, 2});
  std::optional<Tape> short_lived(std::in_place);
  const Var stale = short_lived->input(two);
  short_lived.reset();
  short_lived.emplace();
  short_lived->input(two);
  check_error<deq::InvalidArgument>([&] { square(stale); }, {"no longer"});
}

// Operations of one's own -------------------------------------------------------------------------

TEST_CASE("an operation of one's own, written as documented") {
  const auto f = [](const auto& x) { return cube(x); };
  const Tensor x = random_tensor({2, 3}, 1);
  check_values(cube(x), {2, 3}, [&](const Place& p) { return std::pow(at(x, p), 3); });
  gradient_check("cube", f, x);
  gradient_check(
      "among others", [](const auto& v) { return v * cube(tanh(v)) + cube(v); }, x);
  check_samples("cube", f, x);
  CHECK(cube(random_tensor<float>({2}, 1)).shape() == Shape{2});  // any scalar
  static_assert(deq::Operation<Cube<B>, B>);
  static_assert(!deq::Operation<Tensor, B>);
}

TEST_CASE("an operation of one's own on a list") {
  gradient_check(
      "sum of a list",
      [](const auto&... x) {
        using X = std::common_type_t<std::decay_t<decltype(x)>...>;
        const std::vector<X> list{x...};
        return deq::record_list(SumOfList{}, std::span<const X>(list));
      },
      random_tensor({2, 3}, 1), random_tensor({2, 3}, 2), random_tensor({2, 3}, 3));
}

TEST_CASE("an operation may be used from several tapes and replay alike") {
  const Tensor x = random_tensor({4}, 1), c = random_tensor({4}, 2);
  const auto f = [](const auto& v) { return cube(v); };
  CHECK(same_bits(Recorded(f, x).vjp(c).front(), Recorded(f, x).vjp(c).front()));
}

TEST_CASE("the gradient check notices a wrong VJP") {
  const auto wrong_by = [](double relative) {
    return [=](const auto& x) {
      using Backend = typename std::decay_t<decltype(x)>::Backend;
      return deq::record(Cube<Backend>{3 * (1 + relative)}, x);
    };
  };
  const Tensor x = random_tensor({5}, 1, 0.5, 1);
  CHECK(gradient_errors(wrong_by(0), x)[0] <= 1e-9);
  CHECK(gradient_errors(wrong_by(3e-6), x)[0] > 1e-6);
  CHECK(gradient_errors([](const auto& v) { return value(v) + 0 * v; }, x)[0] == 1);
}
