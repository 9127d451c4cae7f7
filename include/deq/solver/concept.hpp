// SPDX-License-Identifier: MIT
#pragma once

#include <concepts>

#include <deq/core/map.hpp>
#include <deq/core/report.hpp>
#include <deq/inverse/concept.hpp>
#include <deq/solver/stopping.hpp>

namespace deq {

/// Left behind by a solver that has no inverse Jacobian to offer.
struct NoInverse {};

/// Whether a solve should leave its inverse Jacobian behind, decided at compile time by the
/// backward policy.
enum class KeepInverse : bool { no, yes };

/// What can be told of a solver before its map is known: SolverFor, below, says the rest.
template <class Solver>
concept FixedPointSolver = requires(const Solver& solver) {
  { solver.stopping } -> std::convertible_to<const Stopping&>;
};

/// A solver of z = f(z): a copyable struct of hyperparameters with
///
///     template <class B> struct Workspace     scratch and results, reused from solve to solve
///     template <class B> using Inverse        the inverse it can leave behind, or NoInverse
///     template <KeepInverse keep, FixedPointMap Map, class Observer>
///     void solve(Map& f, BatchView<S> z, Workspace<B>& ws, Observer&&) const
///
/// On entry z holds the start (a warm start if it is not zero), on return the best iterates. The
/// workspace then holds `report`, and `inverse` if it was to be kept. Never throws because f does
/// not converge. A constant judges_last = true says that the solver's last evaluation of f was of
/// all samples that were still active, at their iterate number `iterations` (so no line search).
template <class Solver, class Map>
concept SolverFor = FixedPointSolver<Solver> && FixedPointMap<Map> &&
    requires(const Solver& solver, Map& f, BatchView<typename Map::Backend::Scalar> z,
             typename Solver::template Workspace<typename Map::Backend>& ws) {
  solver.template solve<KeepInverse::no>(f, z, ws, NoObserver{});
  { ws.report } -> std::convertible_to<const SolveReport&>;
};

/// The solver leaves an inverse Jacobian behind.
template <class Solver, class B>
concept LeavesInverse = InverseJacobian<typename Solver::template Inverse<B>, B>;

}  // namespace deq
