// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backward/concept.hpp>
#include <deq/backward/unit_cotangent.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/concept.hpp>

namespace deq {

/// Implicit differentiation: solves (I - J^T) w = h, as the fixed point w = J^T w + h from w = 0,
/// with any solver: Broyden (20 iterations in the paper), Gmres, Anderson, FixedPoint. Exact as far
/// as the solver's tolerance goes; costs one VJP an iteration.
///
/// What is solved is the equation of h / ||h||: the solver's tolerances, the absolute one as well,
/// are relative to ||h||, and c h is solved as h is. With Scope::batch the norm is the batch's.
template <FixedPointSolver LinearSolver = Broyden<>>
struct Implicit {
  static constexpr bool needs_inverse = false;

  LinearSolver solver = {};

  template <class B>
  struct Workspace {
    AdjointReport report;
    typename LinearSolver::template Workspace<B> solve;
    detail::UnitCotangent<B> unit;
    Array<B> packed;
  };

  template <class B, Linearization<B> Jacobian, class Inverse>
    requires SolverFor<LinearSolver, AdjointMap<B, Jacobian>>
  void adjoint(Samples everybody, Jacobian& jacobian, const Inverse*,
               BatchView<const typename B::Scalar> h, BatchView<typename B::Scalar> w,
               Workspace<B>& ws) const {
    const auto unit = ws.unit.of(everybody, h, solver.stopping.scope);
    AdjointMap<B, Jacobian> map(jacobian, unit, everybody, ws.packed);
    B::fill(w.data, w.size(), 0);
    solver.template solve<KeepInverse::no>(map, w, ws.solve, NoObserver{});
    ws.unit.scale_back(everybody, w);
    detail::start_report<B>(ws.report, h.count, 0);
    B::when_done([&ws] {
      for (std::size_t s = 0; s < ws.report.samples.size(); ++s) {
        ws.report.samples[s].vjps = ws.solve.report.samples[s].evaluations;
        ws.report.samples[s].status = ws.solve.report.samples[s].status;
      }
    });
  }
};

}  // namespace deq
