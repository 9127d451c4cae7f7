// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include <deq/backward/implicit.hpp>
#include <deq/backward/jfb.hpp>
#include <deq/backward/npg.hpp>
#include <deq/model/mdeq_classifier.hpp>
#include <deq/solver/anderson.hpp>
#include <deq/solver/broyden.hpp>
#include <deq/solver/fixed_point.hpp>

#include "data.hpp"

namespace examples {

/// A solver and a gradient method at work on a model. The library takes both as template arguments;
/// this is the one place where a program that lets its user choose pays for that with a virtual
/// call a pass.
class Method {
 public:
  virtual ~Method() = default;
  /// Fills the gradients of the model's parameters.
  virtual deq::PassReport train(const Batch& batch, std::span<const Tensor> masks) = 0;
  virtual deq::PassReport evaluate(const Batch& batch) = 0;
};

namespace detail {

template <class Solver, deq::BackwardPolicy Policy>
class MethodOf final : public Method {
 public:
  MethodOf(Model& model, Solver solver, Policy policy) : classifier_(model, solver, policy) {}

  deq::PassReport train(const Batch& batch, std::span<const Tensor> masks) override {
    return classifier_.train(batch.images, batch.labels, masks);
  }
  deq::PassReport evaluate(const Batch& batch) override {
    return classifier_.evaluate(batch.images, batch.labels);
  }

 private:
  deq::MdeqClassifier<Device, Solver, Policy> classifier_;
};

/// A solver with a budget; what it remembers is never cut short.
template <class Solver>
Solver make_solver(int iterations, double tolerance) {
  Solver solver;
  solver.stopping.max_iterations = iterations;
  solver.stopping.relative_tolerance = tolerance;
  if constexpr (std::is_same_v<Solver, deq::Broyden<>>) solver.memory = iterations;
  return solver;
}

template <class Solver>
std::unique_ptr<Method> make_method(const std::string& gradient, const Options& options,
                                    Model& model) {
  const auto with = [&]<class Policy>(Policy policy) -> std::unique_ptr<Method> {
    return std::make_unique<MethodOf<Solver, Policy>>(
        model, make_solver<Solver>(options.forward_iterations, options.tolerance), policy);
  };
  if (gradient == "jfb") return with(deq::Jfb{});
  if (gradient == "npg") return with(deq::Npg{options.neumann_terms, options.neumann_damping});
  if constexpr (deq::LeavesInverse<Solver, Device>) {
    if (gradient == "gdeq") return with(deq::Gdeq{});
    if (gradient == "gdeq-refined") return with(deq::Gdeq{.refinements = options.refinements});
  }
  return with(
      deq::Implicit<Solver>{make_solver<Solver>(options.backward_iterations, options.tolerance)});
}

}  // namespace detail

/// The method of that name (see gradient_names), for a model that must outlive it.
inline std::unique_ptr<Method> make_method(const std::string& gradient, const Options& options,
                                           Model& model) {
  if (gradient == "unrolled")
    return std::make_unique<detail::MethodOf<deq::FixedPoint, deq::Unrolled>>(
        model, deq::FixedPoint{}, deq::Unrolled{options.pretrain_layers});
  if (options.solver == "anderson")
    return detail::make_method<deq::Anderson>(gradient, options, model);
  if (options.solver == "fixed-point")
    return detail::make_method<deq::FixedPoint>(gradient, options, model);
  return detail::make_method<deq::Broyden<>>(gradient, options, model);
}

}  // namespace examples
