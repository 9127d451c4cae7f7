// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <utility>

#include <deq/layer/equilibrium.hpp>

namespace deq {

/// Which value an equilibrium hands on to the rest of a network.
enum class Output {
  state,    ///< z*, the solver's result
  applied,  ///< f(z*), one application more: what the original MDEQ trains on
};

namespace detail {

/// An equilibrium as one operation of an outer tape: its arguments are x... and theta..., its value
/// z* or f(z*), its VJP the layer's gradient. The iterations of the solver never enter the tape.
template <class Layer, class Solution, class B>
struct EquilibriumOperation {
  static constexpr bool saves_inputs = false, saves_output = false;

  Layer* layer;
  Solution* solution;
  std::size_t inputs;
  Tensor<B> value;
  std::uint64_t stamp;  ///< of the solve that has found it

  Tensor<B> forward(std::span<const Tensor<B>>) { return std::move(value); }

  void vjp(const Reverse<B>& r) const {
    require(solution->stamp() == stamp,
            "record_equilibrium: the solution holds another solve than the one recorded; until the "
            "backward pass every recorded equilibrium needs a solution of its own");
    PoolVector<Tensor<B>> gradients;
    for (const Sink<B>& sink : r.grad)
      gradients.push_back(sink ? Tensor<B>(sink.shape()) : Tensor<B>());
    const std::span<const Tensor<B>> all(gradients);
    const auto of_inputs = all.first(inputs), of_params = all.subspan(inputs);
    if (r.for_the_last_time)
      layer->gradient_and_clear(*solution, r.cotangent, of_inputs, of_params, solution->adjoint,
                                solution->adjoint_report);
    else
      layer->gradient(*solution, r.cotangent, of_inputs, of_params, solution->adjoint,
                      solution->adjoint_report);
    for (std::size_t i = 0; i < r.grad.size(); ++i)
      if (r.grad[i]) r.grad[i].add(gradients[i]);
  }
};

}  // namespace detail

/// Solves, and records the equilibrium as one node of the tape that x and theta live on; what of
/// them are tensors are constants. `solution` keeps the state, the inverse and the report, and
/// after the backward pass the adjoint and its report; a backward pass that clears the tape gives
/// the inverse back. Layer and solution must outlive the tape's use of the node, and the solution
/// must stay that of this solve: otherwise the backward pass throws InvalidArgument.
template <class Layer, Backend B, TensorLike X, std::size_t NX, TensorLike P, std::size_t NP,
          class Solution>
Var<B> record_equilibrium(Layer& layer, const Tensor<B>& z0, const Inputs<X, NX>& x,
                          const Params<P, NP>& theta, Output output, Solution& solution) {
  constexpr bool fits = std::same_as<Solution, typename Layer::template Solution<B, NX, NP>>;
  static_assert(fits,
                "deq: record_equilibrium fills a solution of its layer and of as many inputs and "
                "parameters as it is given: decltype(layer)::Solution<B, inputs, parameters>");
  if constexpr (fits) {
    PoolVector<Var<B>> arguments;
    for (const X& v : x.list) arguments.emplace_back(v);
    for (const P& v : theta.list) arguments.emplace_back(v);
    PoolVector<Tensor<B>> values;
    for (const Var<B>& v : arguments) values.push_back(v.value());
    const std::span<const Tensor<B>> all(values);
    const std::size_t split = x.list.size();
    const auto of_x = detail::from_span<Inputs<Tensor<B>, NX>>(all.first(split));
    const auto of_theta = detail::from_span<Params<Tensor<B>, NP>>(all.subspan(split));
    const auto find = [&] {
      if (output == Output::applied) return layer.solve_and_apply(z0, of_x, of_theta, solution);
      layer.solve(z0, of_x, of_theta, solution);
      return solution.z;
    };
    Tensor<B> value = find();
    detail::EquilibriumOperation<Layer, Solution, B> operation{&layer, &solution, split,
                                                               std::move(value), solution.stamp()};
    return record_list(std::move(operation), std::span<const Var<B>>(arguments));
  }
}

}  // namespace deq
