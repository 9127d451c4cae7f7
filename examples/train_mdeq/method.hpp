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
template <deq::Backend B>
class Method {
 public:
  using Tensor = deq::Tensor<B>;

  virtual ~Method() = default;
  /// Fills the gradients of the model's parameters.
  virtual void train(const Tensor& images, const deq::Labels<B>& labels,
                     std::span<const Tensor> masks) = 0;
  virtual void evaluate(const Batch<B>& batch) = 0;
  virtual const deq::PassReport& last_report() const = 0;
};

namespace detail {

template <deq::Backend B, class Solver, deq::BackwardPolicy Policy>
class MethodOf final : public Method<B> {
 public:
  using typename Method<B>::Tensor;

  MethodOf(deq::Mdeq<B>& model, Solver solver, Policy policy)
      : classifier_(model, solver, policy) {}

  void train(const Tensor& images, const deq::Labels<B>& labels,
             std::span<const Tensor> masks) override {
    classifier_.train(images, labels, masks);
  }
  void evaluate(const Batch<B>& batch) override {
    classifier_.evaluate(batch.images, batch.labels);
  }
  const deq::PassReport& last_report() const override { return classifier_.last_report(); }

 private:
  deq::MdeqClassifier<B, Solver, Policy> classifier_;
};

/// A solver with a budget; what it remembers is never cut short.
template <class Solver>
Solver make_solver(int iterations, double tolerance) {
  Solver solver;
  solver.stopping.max_iterations = iterations;
  solver.stopping.relative_tolerance = tolerance;
  if constexpr (requires { solver.when_full; }) solver.memory = iterations;
  return solver;
}

template <class Solver, deq::Backend B>
std::unique_ptr<Method<B>> make_method(const std::string& gradient, const Options& options,
                                       deq::Mdeq<B>& model) {
  const auto with = [&]<class Policy>(Policy policy) -> std::unique_ptr<Method<B>> {
    return std::make_unique<MethodOf<B, Solver, Policy>>(
        model, make_solver<Solver>(options.forward_iterations, options.tolerance), policy);
  };
  if (gradient == "jfb") return with(deq::Jfb{});
  if (gradient == "npg") return with(deq::Npg{options.neumann_terms, options.neumann_damping});
  if constexpr (deq::LeavesInverse<Solver, B>) {
    if (gradient == "gdeq") return with(deq::Gdeq{});
    if (gradient == "gdeq-refined") return with(deq::Gdeq{.refinements = options.refinements});
  }
  return with(
      deq::Implicit<Solver>{make_solver<Solver>(options.backward_iterations, options.tolerance)});
}

}  // namespace detail

/// The method of that name (see gradient_names), for a model that must outlive it.
template <deq::Backend B>
std::unique_ptr<Method<B>> make_method(const std::string& gradient, const Options& options,
                                       deq::Mdeq<B>& model) {
  if (gradient == "unrolled")
    return std::make_unique<detail::MethodOf<B, deq::FixedPoint, deq::Unrolled>>(
        model, deq::FixedPoint{}, deq::Unrolled{options.pretrain_layers});
  if (options.solver == "anderson")
    return detail::make_method<deq::Anderson>(gradient, options, model);
  if (options.solver == "fixed-point")
    return detail::make_method<deq::FixedPoint>(gradient, options, model);
  if (options.solver == "broyden-compact")
    return detail::make_method<deq::Broyden<deq::CompactSteps>>(gradient, options, model);
  return detail::make_method<deq::Broyden<>>(gradient, options, model);
}

}  // namespace examples
