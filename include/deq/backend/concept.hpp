// SPDX-License-Identifier: MIT
// The contract between algorithms and memory. Solvers, inverses and backward policies are written
// in these primitives alone; a backend says how they run (Eigen and threads on the CPU, kernels on
// a GPU). All functions are static: a backend is a type, never an object that has to be passed
// along.
#pragma once

#include <concepts>
#include <cstddef>
#include <span>

#include <deq/core/types.hpp>

namespace deq {

namespace detail {
/// Stand-ins for the lambdas that solvers hand to for_each, in_blocks and filter.
struct AnySampleFunction {
  DEQ_HOST_DEVICE void operator()(Index) const {}
};
struct AnyBlockFunction {
  void operator()(Index, Index) const {}
};
struct AnyReader {
  void operator()(std::span<const Index>) const {}
};
struct AnyWork {
  void operator()() const {}
};
struct AnyLane {
  void operator()(Index) const {}
};
struct AnySamplePredicate {
  DEQ_HOST_DEVICE bool operator()(Index) const { return true; }
};
struct AnySampleWork {
  template <class Team>
  DEQ_HOST_DEVICE void operator()(Index, const Team&) const {}
};
}  // namespace detail

/// Memory: `allocate` returns uninitialised memory, `upload`/`download` cross to and from the host.
template <class B>
concept BackendMemory = requires(std::size_t bytes, void* p, const void* q) {
  { B::allocate(bytes) } -> std::same_as<void*>;
  B::deallocate(p, bytes);
  B::copy_bytes(p, q, bytes);      // within the backend's memory
  B::upload_bytes(p, q, bytes);    // host -> backend
  B::download_bytes(p, q, bytes);  // backend -> host
};

/// The batched vector primitives. Notation: s runs over the active samples `a`; a batch X has one
/// column a sample of the *whole* batch, indexed by s; a *compact* batch C has one column an active
/// sample, column j belonging to s = a[j]. H is a basis: vectors H_s,i. Arrays of per-sample
/// numbers (alpha, out) are indexed by s, coefficients by s * H.capacity + i. Results for one
/// sample never depend on which other samples are active: their bits are the same alone and in any
/// company. A vector whose slot is negative is kept nowhere. A negative a[j] is a hole, left by a
/// backend whose host does not know how many samples are left: position j, column j of a compact
/// batch, belongs to nobody. The four primitives that BroydenSteps is made of take a basis stored
/// as Bfloat16 as well; the vector that `step` makes is then what is stored of it.
///
/// The small algebra of a sample is a function of its number s, or of (s, team), if there are loops
/// in it that threads may share: all threads of the team make the call, team.for_each(n, body) has
/// body(i) done once for each i, what one has written all see after team.sync(), and what is to be
/// done once is for the thread whose team.rank is 0. A pass may do it last, then(s, team), as soon
/// as the sample's sums are there.
template <class B>
concept BackendPrimitives = requires(Samples a, BatchView<typename B::Scalar> X,
                                     BatchView<const typename B::Scalar> C,
                                     BasisView<typename B::Scalar> H,
                                     BasisView<const typename B::Scalar> cH,
                                     const typename B::Scalar* alpha, typename B::Scalar* out,
                                     const Index* rank, Index i, Index* ids, const bool* where,
                                     detail::AnySampleWork then, typename B::Scalar value) {
  B::fill(out, i, value);             // out_0..i-1 = value
  B::gather(a, C, X);                 // compact <- whole: X_j = C_a[j]
  B::scatter(a, C, X);                // whole <- compact: X_a[j] = C_j
  B::copy(a, C, X);                   // X_s = C_s
  B::copy(a, C, X, where);            // X_s = C_s where_s
  B::residual(a, C, C, X, out, out);  // X_s = F_j - Z_s, out1 = ||X_s||^2, out2 = ||F_j||^2
  B::dot(a, C, C, out);               // out_s = C_s . C_s
  B::axpby(a, value, C, value, X);    // X_s = alpha C_s + beta X_s; 0 X_s is 0
  B::axpby(a, alpha, C, alpha, X);    // X_s = alpha_s C_s + beta_s X_s; 0 X_s is 0
  B::project(a, cH, rank, C, out);    // out_s,i = H_s,i . C_s, i < rank_s
  // residual and project of X_s in one pass; nothing is kept of X_s if X is empty:
  B::residual(a, C, C, X, out, out, cH, rank, out, then);
  // X_s = value C_s + sum_i alpha_s,i H_s,i, i < rank_s:
  B::combine(a, cH, rank, alpha, value, C, X);
  // H_s,slot[s] = alpha_s C_s + sum_i alpha_s,i H_s,i, i < rank_s:
  B::extend(a, H, rank, alpha, alpha, C, rank);
  // y_s = alpha_s (F_j - Z_s) + sum_i alpha_s,i H_s,i, i < rank_s; H_s,slot[s] = y_s,
  // out_s = ||y_s||^2, X_s = Z_s where_s, and then Z_s += y_s:
  B::step(a, H, rank, alpha, alpha, C, rank, X, X, where, out, then);
  B::store(a, alpha, C, H, rank);        // H_s,slot[s] = alpha_s C_s
  B::accumulate(a, alpha, cH, rank, X);  // X_s += alpha_s H_s,slot[s]
  B::rotate(a, H, i, alpha, alpha);      // (H_i, H_i+1) <- (c H_i + s H_i+1, -s H_i + c H_i+1)
  // fn(first, n) for ranges that make up [0, i), perhaps at the same time; the second i says how
  // many numbers an item touches:
  B::in_blocks(i, i, detail::AnyBlockFunction{});
  B::for_each(a, detail::AnySampleFunction{});   // fn(s): the small per-sample algebra
  B::for_each_team(a, detail::AnySampleWork{});  // fn(s, team)
  { B::filter(a, detail::AnySamplePredicate{}, ids) } -> std::same_as<Samples>;  // keeps order
};

/// How work is given to a backend. The host need not know how far it is: what is `empty` on the
/// device may not be known to be, and work may be recorded for later (backend/cuda/graph.cuh). So
/// loops are repeat(), or have a bound beside empty(); the work of one repetition does not depend
/// on which one it is, `a` changes by being filtered in place; and what the host is told it reads
/// in when_downloaded(). Works that do not wait for each other are given side_by_side(), each a
/// lane of its own; what one of them writes, no other touches, be it what is derived from a frozen
/// tensor. Given the `Lanes` of earlier works, lane k goes on where lane k of those was: it is the
/// only one to use what only that one has used. `concurrent` says that they may really be done at
/// the same time, so that keeping them apart is worth something. `whole_batches` says that kernels
/// want all samples at once, no blocks of them; while a Rows of a set lives, operations may leave
/// out the rows of a batch that are holes in the set.
template <class B>
concept BackendWork = requires(Samples a, const Index* ids, Index i, typename B::Lanes lanes) {
  { B::empty(a) } -> std::same_as<bool>;            // nobody is in the set; may wait for a device
  B::repeat(a, detail::AnyWork{});                  // fn() until nobody is in `a`
  B::side_by_side(i, detail::AnyLane{});            // fn(k), k < i, perhaps at the same time
  B::side_by_side(i, detail::AnyLane{}, lanes);     // the same; an empty `lanes` is filled
  B::when_done(detail::AnyWork{});                  // fn(), once the work so far is done
  B::when_downloaded(ids, i, detail::AnyReader{});  // fn(numbers on the host), likewise
  { B::recording() } -> std::same_as<bool>;         // work is recorded now, not done
  { B::concurrent } -> std::convertible_to<bool>;
  { B::whole_batches } -> std::convertible_to<bool>;
  typename B::Rows;
  typename B::Replay;  // a function object: does the same work again and again
  requires std::constructible_from<typename B::Rows, Samples>;
};

/// Everything a solver or a policy needs. `B::Scalar` is float or double.
template <class B>
concept Backend = std::floating_point<typename B::Scalar> && BackendMemory<B> &&
    BackendPrimitives<B> && BackendWork<B>;

/// A backend that can also solve a dense system per sample (the `Exact` oracle, small dimensions).
template <class B>
concept DenseBackend = Backend<B> &&
    requires(Index n, typename B::Scalar* A, typename B::Scalar* b) {
  B::solve_dense(n, A, b);  // b <- A^-1 b, A column-major n x n, destroyed
};

namespace detail {
template <class B>
struct ImageScalarOf {
  using type = typename B::Scalar;
};
template <class B>
  requires requires { typename B::Image; }
struct ImageScalarOf<B> {
  using type = typename B::Image;
};
}  // namespace detail

/// What a backend stores the images of channels-last operations as (tape/ops/nhwc.hpp): B::Image if
/// it names one, else its scalars. Arithmetic has scalars everywhere.
template <class B>
using ImageScalar = typename detail::ImageScalarOf<B>::type;
template <class B>
inline constexpr bool compact_images = !std::same_as<ImageScalar<B>, typename B::Scalar>;

}  // namespace deq
