// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <typeindex>
#include <utility>
#include <vector>

#include <deq/backward/certificate.hpp>
#include <deq/backward/gdeq.hpp>
#include <deq/backward/unrolled.hpp>
#include <deq/core/in_order.hpp>
#include <deq/core/lending_pool.hpp>
#include <deq/core/parallel.hpp>
#include <deq/core/stamp.hpp>
#include <deq/layer/arguments.hpp>
#include <deq/layer/schedule.hpp>
#include <deq/layer/taped_map.hpp>
#include <deq/solver/broyden.hpp>

namespace deq {

namespace detail {

template <class P>
inline constexpr bool unrolls = requires {
  P::unrolls;
};
template <class Solver>
inline constexpr bool judges_last = requires {
  requires Solver::judges_last;
};

}  // namespace detail

/// The gradients of a loss through an equilibrium.
template <Backend B>
struct EquilibriumGradients {
  PoolVector<Tensor<B>> inputs;  ///< dl/dx_i, of the shape of x_i
  PoolVector<Tensor<B>> params;  ///< dl/dtheta_i, of the shape of theta_i
  Tensor<B> adjoint;             ///< w, of the shape of z
  AdjointReport report;
};

/// An equilibrium layer: z* = f(z*, x, theta), found by `Solver`, differentiated by `Policy`.
///
///     auto layer = equilibrium<Broyden<>, Gdeq>(f);
///     auto eq = layer.solve(z0, inputs(x), params(W, b));       // eq.z, eq.report
///     auto grad = layer.gradient(eq, h);                        // h = dl/dz*, of the shape of z
///
/// f is a generic callable f(z, x..., theta...) of tensors, (N, state...) in and out, that treats
/// the N samples alike and apart. It is shared by threads, so its call must be const in effect.
template <FixedPointSolver Solver, BackwardPolicy Policy, class F>
class Equilibrium {
 public:
  Solver solver;
  Policy policy;
  Schedule schedule = {};
  bool certified = false;  ///< report the adjoint residual of every gradient; one VJP more

  explicit Equilibrium(F f, Solver s = {}, Policy p = {})
      : solver(std::move(s)), policy(std::move(p)), f_(std::move(f)) {}

  const F& function() const { return f_; }

  /// z* with what its gradient needs: the arguments, and the inverse Jacobian if the policy wants
  /// it.
  template <Backend B, std::size_t NX, std::size_t NP>
  class Solution {
    using Kept =
        std::conditional_t<Policy::needs_inverse, typename Solver::template Inverse<B>, NoInverse>;

   public:
    Tensor<B> z;         ///< (N, state...), the best iterates
    SolveReport report;  ///< one entry a sample
    Tensor<B> adjoint;   ///< w of the backward pass through a tape, if one has come after the solve
    AdjointReport adjoint_report;  ///< and its report

    /// The inverse Jacobian of block b of samples: const, and shared with whoever keeps the
    /// pointer. Null after gradient_and_clear.
    std::shared_ptr<const Kept> inverse(Index block) const requires(Policy::needs_inverse) {
      return blocks_[static_cast<std::size_t>(block)].inverse;
    }
    Index block_size() const { return block_size_; }
    /// Tells this solve from every other; 0 before the first.
    std::uint64_t stamp() const { return stamp_; }

   private:
    friend class Equilibrium;
    struct Block {
      Index first = 0, count = 0;
      std::shared_ptr<Kept> inverse;
    };
    std::uint64_t stamp_ = 0;
    Shape state_;
    Index block_size_ = 0;
    Tensor<B> start_;  ///< z0, where an unrolled computation is recorded again
    std::vector<Tensor<B>> x_, theta_;
    std::vector<Block> blocks_;
  };

  /// Solves for every sample, starting at z0 (N, state...).
  template <Backend B, std::size_t NX, std::size_t NP>
  Solution<B, NX, NP> solve(const Tensor<B>& z0, const Inputs<Tensor<B>, NX>& x,
                            const Params<Tensor<B>, NP>& theta) {
    require(!B::recording(), "Equilibrium::solve: recorded work fills a solution that exists");
    Solution<B, NX, NP> solution;
    solve(z0, x, theta, solution);
    return solution;
  }
  template <Backend B, std::size_t NX>
  auto solve(const Tensor<B>& z0, const Inputs<Tensor<B>, NX>& x) {
    return solve(z0, x, no_params<Tensor<B>>());
  }
  template <Backend B, std::size_t NP>
  auto solve(const Tensor<B>& z0, const Params<Tensor<B>, NP>& theta) {
    return solve(z0, no_inputs<Tensor<B>>(), theta);
  }
  template <Backend B>
  auto solve(const Tensor<B>& z0) {
    return solve(z0, no_inputs<Tensor<B>>(), no_params<Tensor<B>>());
  }
  /// What none of them takes says what they do.
  template <class... A>
  void solve(const A&...) const {
    static_assert(
        sizeof...(A) == ~std::size_t{0},
        "deq: it is solve(z0, inputs(x...), params(theta...)), tensors of one backend and "
        "scalar, and perhaps a solution to fill, of a layer that is not const");
  }

  /// The same into a solution that is used again: its memory serves once more.
  template <Backend B, std::size_t NX, std::size_t NP>
  void solve(const Tensor<B>& z0, const Inputs<Tensor<B>, NX>& x,
             const Params<Tensor<B>, NP>& theta, Solution<B, NX, NP>& solution) {
    if constexpr (check_solve<B, NX, NP>()) {
      begin(z0, x, theta, solution);
      for_each_block(solution, [&](auto& ws, auto& block) { solve_block(ws, solution, block); });
    }
  }
  template <Backend B, std::size_t NX>
  void solve(const Tensor<B>& z0, const Inputs<Tensor<B>, NX>& x, Solution<B, NX, 0>& solution) {
    solve(z0, x, no_params<Tensor<B>>(), solution);
  }
  template <Backend B, std::size_t NP>
  void solve(const Tensor<B>& z0, const Params<Tensor<B>, NP>& theta,
             Solution<B, 0, NP>& solution) {
    solve(z0, no_inputs<Tensor<B>>(), theta, solution);
  }
  template <Backend B>
  void solve(const Tensor<B>& z0, Solution<B, 0, 0>& solution) {
    solve(z0, no_inputs<Tensor<B>>(), no_params<Tensor<B>>(), solution);
  }

  /// f(z*, x, theta): one application more. Its gradient is that of z*, so that `gradient` serves
  /// both; the original MDEQ trains on it.
  template <Backend B, std::size_t NX, std::size_t NP>
  Tensor<B> apply(const Solution<B, NX, NP>& solution) {
    const Tensor<B> out(solution.z.shape());
    for_each_block(solution,
                   [&](auto& ws, const auto& block) { apply_block(ws, solution, block, out); });
    return out;
  }
  /// `solve` and `apply` at once. The application costs nothing for a block of samples of which the
  /// solver's last evaluations of f were at their z*.
  template <Backend B, std::size_t NX, std::size_t NP>
  Tensor<B> solve_and_apply(const Tensor<B>& z0, const Inputs<Tensor<B>, NX>& x,
                            const Params<Tensor<B>, NP>& theta, Solution<B, NX, NP>& solution) {
    if constexpr (check_solve<B, NX, NP>()) {
      begin(z0, x, theta, solution);
      const Tensor<B> out(solution.z.shape());
      for_each_block(solution, [&](auto& ws, auto& block) {
        solve_block(ws, solution, block);
        if (!take_last_value(ws, block, out)) apply_block(ws, solution, block, out);
      });
      return out;
    }
  }

  /// dl/dx and dl/dtheta from h = dl/dz* (N, state...). The same bits for any number of threads.
  template <Backend B, std::size_t NX, std::size_t NP>
  EquilibriumGradients<B> gradient(const Solution<B, NX, NP>& solution, const Tensor<B>& h) {
    require(!B::recording(), "Equilibrium::gradient: recorded work fills gradients that exist");
    EquilibriumGradients<B> g;
    for (const Tensor<B>& x : solution.x_) g.inputs.emplace_back(x.shape());
    for (const Tensor<B>& p : solution.theta_) g.params.emplace_back(p.shape());
    gradient(solution, h, g);
    return g;
  }

  /// The same into tensors that exist already; overwrites them. An empty tensor in g.inputs or
  /// g.params is a gradient that nobody wants; it is not computed. Throws ShapeError if another one
  /// has not the shape of what it belongs to.
  template <Backend B, std::size_t NX, std::size_t NP>
  void gradient(const Solution<B, NX, NP>& solution, const Tensor<B>& h,
                EquilibriumGradients<B>& g) {
    gradient(solution, h, std::span<const Tensor<B>>(g.inputs),
             std::span<const Tensor<B>>(g.params), g.adjoint, g.report);
  }
  /// The same, every part by itself: the gradients, w and the report.
  template <Backend B, std::size_t NX, std::size_t NP>
  void gradient(const Solution<B, NX, NP>& solution, const Tensor<B>& h,
                std::span<const Tensor<B>> inputs, std::span<const Tensor<B>> params,
                Tensor<B>& adjoint, AdjointReport& report) {
    if constexpr (check_gradient<B, NX, NP>())
      differentiate(solution, h, inputs, params, adjoint, report);
  }
  /// The same for the last time: the inverse, which can be most of the memory there is, is given
  /// back as soon as w is known, before f is recorded where the policy itself needs no VJP.
  template <Backend B, std::size_t NX, std::size_t NP>
  void gradient_and_clear(Solution<B, NX, NP>& solution, const Tensor<B>& h,
                          std::span<const Tensor<B>> inputs, std::span<const Tensor<B>> params,
                          Tensor<B>& adjoint, AdjointReport& report) {
    if constexpr (check_gradient<B, NX, NP>())
      differentiate(solution, h, inputs, params, adjoint, report);
  }

 private:
  /// The entrance of every solve: true, or it does not compile and says why. With false nothing
  /// else is compiled that would say more.
  template <Backend B, std::size_t NX, std::size_t NP>
  static constexpr bool check_solve() {
    constexpr bool called = detail::callable<F, Tensor<B>, NX, NP>;
    static_assert(called,
                  "deq: f must take z, then every input, then every parameter as tensors of one "
                  "backend, and return a tensor");
    if constexpr (called) {
      constexpr bool solved = SolverFor<Solver, TapedMap<B, F, NX, NP>>;
      static_assert(
          solved,
          "deq: Equilibrium needs a solver for any f: Broyden, Anderson or FixedPoint (Gmres "
          "is for affine maps, as in Implicit<Gmres>)");
      constexpr bool inverted = !Policy::needs_inverse || LeavesInverse<Solver, B>;
      static_assert(
          inverted,
          "deq: Gdeq needs the inverse Jacobian of the forward solve, and this solver leaves "
          "none behind. Solve with Broyden or Anderson, or choose Jfb, Npg or Implicit.");
      return solved && inverted;
    }
    return false;
  }
  /// The entrance of every gradient, in the same way.
  template <Backend B, std::size_t NX, std::size_t NP>
  static constexpr bool check_gradient() {
    constexpr bool recorded = detail::callable<F, Var<B>, NX, NP>;
    static_assert(
        recorded,
        "deq: for a gradient f must also take and return variables (deq::Var): write it as "
        "a generic lambda, [](const auto& z, ...)");
    return recorded;
  }

  template <Backend B, std::size_t NX, std::size_t NP>
  struct Workspace {
    TapedMap<B, F, NX, NP> map;
    typename Solver::template Workspace<B> solve;
    typename Policy::template Workspace<B> adjoint;
    CertificateWorkspace<B> certificate;
    SolveReport unrolled_report;
    Array<B> residual, norms;
    Everybody<B> everybody;
    std::vector<Tensor<B>> x_rows, x_grad, theta_grad;

    const SolveReport& report() const {
      if constexpr (detail::unrolls<Policy>)
        return unrolled_report;
      else
        return solve.report;
    }
  };

  /// z0 by value: it may be the state, or the adjoint, of the solution that is begun again.
  template <Backend B, std::size_t NX, std::size_t NP>
  void begin(Tensor<B> z0, const Inputs<Tensor<B>, NX>& x, const Params<Tensor<B>, NP>& theta,
             Solution<B, NX, NP>& solution) const {
    require<ShapeError>(z0.shape().rank() >= 1, "Equilibrium: z0 must be (N, state...)");
    const Index count = z0.extent(0);
    for (const Tensor<B>& xi : x.list)
      require<ShapeError>(xi.shape().rank() >= 1 && xi.extent(0) == count, "Equilibrium: z0 holds ",
                          count, " samples, an input has shape ", xi.shape());
    solution.stamp_ = detail::fresh_stamp();
    solution.adjoint = {};  // that of the solution before
    solution.z = {};
    solution.z = z0.clone();
    if constexpr (detail::unrolls<Policy>) solution.start_ = z0;
    solution.state_ = Shape(z0.shape().extents().subspan(1));
    solution.x_.assign(x.list.begin(), x.list.end());
    // Packed weights and the like serve the whole solve and its gradient.
    solution.theta_.clear();
    for (const Tensor<B>& p : theta.list) solution.theta_.push_back(p.frozen());
    solution.report.samples.assign(static_cast<std::size_t>(count), {});
    const std::size_t traces = solver.stopping.trace ? static_cast<std::size_t>(count) : 0;
    solution.report.relative_trace.resize(traces);
    solution.report.absolute_trace.resize(traces);
    Index parameters = 0;
    for (const Tensor<B>& p : theta.list) parameters += p.size();
    const Index size = B::whole_batches ? count
                                        : schedule.block_size(solution.state_.size(), parameters,
                                                              count, solver.stopping.scope);
    solution.block_size_ = size;
    solution.blocks_.resize(static_cast<std::size_t>(size > 0 ? (count + size - 1) / size : 0));
    for (std::size_t b = 0; b < solution.blocks_.size(); ++b) {
      solution.blocks_[b].first = static_cast<Index>(b) * size;
      solution.blocks_[b].count = std::min(size, count - solution.blocks_[b].first);
    }
  }

  template <class Ws, class Sol, class Block>
  void bind(Ws& ws, const Sol& solution, const Block& block) {
    ws.x_rows.clear();
    for (const auto& x : solution.x_) ws.x_rows.push_back(x.rows(block.first, block.count));
    ws.map.bind(f_, solution.state_, ws.x_rows, solution.theta_, solution.z.extent(0));
    ws.x_rows.clear();
  }

  /// work(workspace, block) for block b, the workspace's map bound to it meanwhile.
  template <class Sol, class Work>
  void with_block(Sol& solution, Index b, Work&& work) {
    auto& pool = workspaces(solution);
    typename std::remove_reference_t<decltype(pool)>::Loan loan(pool);
    auto& ws = *loan;
    struct Release {
      decltype(ws.map)& map;
      ~Release() { map.release(); }
    } release{ws.map};
    auto& block = solution.blocks_[static_cast<std::size_t>(b)];
    bind(ws, solution, block);
    work(ws, block);
  }
  template <class Sol, class Work>
  void for_each_block(Sol& solution, Work work) {
    parallel_for(static_cast<Index>(solution.blocks_.size()),
                 [&](Index b) { with_block(solution, b, work); });
  }

  /// Gradients are empty, or of the shapes of what they belong to.
  template <Backend B>
  static void require_gradients(const char* what, std::span<const Tensor<B>> gradients,
                                const std::vector<Tensor<B>>& of) {
    for (std::size_t i = 0; i < gradients.size(); ++i)
      require<ShapeError>(!gradients[i] || gradients[i].shape() == of[i].shape(),
                          "Equilibrium::gradient: the gradient of ", what, ' ', i, " has shape ",
                          gradients[i].shape(), ", the ", what, " has ", of[i].shape());
  }

  /// A solution that is not const is not needed any more.
  template <class Sol, Backend B>
  void differentiate(Sol& solution, const Tensor<B>& h, std::span<const Tensor<B>> inputs,
                     std::span<const Tensor<B>> params, Tensor<B>& adjoint, AdjointReport& report) {
    require(solution.stamp() != 0, "Equilibrium::gradient: nothing has been solved yet");
    if constexpr (detail::unrolls<Policy>)
      require(!certified, "Equilibrium::gradient: Unrolled has no adjoint that could be certified");
    require<ShapeError>(h.shape() == solution.z.shape(), "Equilibrium::gradient: h has shape ",
                        h.shape(), ", z has ", solution.z.shape());
    require(inputs.size() == solution.x_.size() && params.size() == solution.theta_.size(),
            "Equilibrium::gradient: needs ", solution.x_.size(), " input and ",
            solution.theta_.size(), " parameter gradients, got ", inputs.size(), " and ",
            params.size());
    require_gradients("input", inputs, solution.x_);
    require_gradients("parameter", params, solution.theta_);
    if (adjoint.shape() != h.shape() || !adjoint.unique()) adjoint = Tensor<B>(h.shape());
    report.reset(h.extent(0));
    if (solution.blocks_.empty())  // no samples, no gradient
      for (const Tensor<B>& p : params)
        if (p) B::fill(p.data(), p.size(), 0);
    detail::InOrder order;
    parallel_for(static_cast<Index>(solution.blocks_.size()), [&](Index b) {
      detail::InOrder::Turn turn(order, b);
      with_block(solution, b, [&](auto& ws, auto& block) {
        const auto w = adjoint_of_block(ws, solution, block, h, adjoint, report);
        if constexpr (!std::is_const_v<Sol>) block.inverse = nullptr;

        ws.x_grad.clear();
        for (const Tensor<B>& x : inputs)
          ws.x_grad.push_back(x ? x.rows(block.first, block.count) : Tensor<B>());
        // The first block's parameter gradients go straight to their place, the others are added.
        ws.theta_grad.clear();
        for (const Tensor<B>& p : params)
          ws.theta_grad.push_back(b == 0 || !p ? p : Tensor<B>(p.shape()));
        ws.map.pull_back(w, ws.x_grad, ws.theta_grad);
        turn.wait();
        if (b > 0)
          for (std::size_t i = 0; i < params.size(); ++i)
            if (params[i]) add(ws.theta_grad[i], params[i]);
        ws.x_grad.clear();
        ws.theta_grad.clear();
      });
    });
  }

  template <class Ws, class Sol, class Block>
  void solve_block(Ws& ws, Sol& solution, Block& block) {
    using B = typename decltype(ws.map)::Backend;
    find_state(ws, solution.z.batch().columns(block.first, block.count), block);
    B::when_done([&report = solution.report, &of_block = ws.report(), first = block.first] {
      std::copy(of_block.samples.begin(), of_block.samples.end(), report.samples.begin() + first);
      for (const auto trace : {&SolveReport::relative_trace, &SolveReport::absolute_trace})
        std::copy((of_block.*trace).begin(), (of_block.*trace).end(),
                  (report.*trace).begin() + first);
    });
  }

  template <class Ws, class Sol, class Block, Backend B>
  void apply_block(Ws& ws, const Sol& solution, const Block& block, const Tensor<B>& out) {
    ws.map.evaluate(ws.everybody(block.count), solution.z.batch().columns(block.first, block.count),
                    out.batch().columns(block.first, block.count));
  }
  /// The same from what the map has been asked for last, if that was f(z*) of the whole block.
  template <class Ws, class Block, Backend B>
  bool take_last_value(Ws& ws, const Block& block, const Tensor<B>& out) {
    if constexpr (!B::whole_batches && !detail::unrolls<Policy> && detail::judges_last<Solver>) {
      const auto& samples = ws.report().samples;
      const bool at_best = std::all_of(
          samples.begin(), samples.end(),
          [](const SampleReport& sample) { return sample.best_iteration == sample.iterations; });
      return at_best && ws.map.copy_last_value(out.batch().columns(block.first, block.count));
    }
    return false;
  }

  template <class Ws, class View, class Block>
  void find_state(Ws& ws, View z, Block& block) {
    if constexpr (detail::unrolls<Policy>) {
      unroll(ws, z);
    } else if constexpr (Policy::needs_inverse) {
      // The workspace borrows the memory of the inverse that is replaced, unless somebody else
      // still shares that. If f throws, the block has none.
      using Inverse = std::remove_reference_t<decltype(ws.solve.inverse)>;
      std::shared_ptr<Inverse> inverse = std::exchange(block.inverse, nullptr);
      if (!inverse || inverse.use_count() > 1)
        inverse = std::allocate_shared<Inverse>(PoolAllocator<Inverse>());
      std::swap(*inverse, ws.solve.inverse);
      solver.template solve<KeepInverse::yes>(ws.map, z, ws.solve, NoObserver{});
      std::swap(*inverse, ws.solve.inverse);
      block.inverse = std::move(inverse);
    } else {
      solver.template solve<KeepInverse::no>(ws.map, z, ws.solve, NoObserver{});
    }
  }

  /// n applications of f in place; the report gives the last step.
  template <class Ws, class View>
  void unroll(Ws& ws, View z) {
    using B = typename decltype(ws.map)::Backend;
    using S = typename B::Scalar;
    require(policy.n >= 1, "Unrolled: n must be >= 1, got ", policy.n);
    const Samples everybody = ws.everybody(z.count);
    const BatchView<S> next = ws.residual.batch(z.dim, z.count);
    ws.norms.resize(2 * z.count);
    for (int k = 0; k < policy.n; ++k) {
      ws.map.evaluate(everybody, z, next);
      // z <- f(z) - z, for its norm, then z <- f(z)
      if (k + 1 == policy.n)
        B::residual(everybody, next, z, z, ws.norms.data(), ws.norms.data() + z.count);
      B::copy(everybody, next, z);
    }
    B::when_downloaded(
        ws.norms.data(), 2 * z.count, [&report = ws.unrolled_report, n = policy.n](auto norms) {
          report.samples.assign(norms.size() / 2, {});
          for (std::size_t s = 0; s < report.samples.size(); ++s) {
            SampleReport& r = report.samples[s];
            r.status = SolveStatus::budget_exhausted;
            r.iterations = r.best_iteration = r.evaluations = n;
            r.absolute = std::sqrt(static_cast<double>(norms[s]));
            r.relative = r.absolute /
                         (std::sqrt(static_cast<double>(norms[s + report.samples.size()])) + 1e-9);
          }
        });
  }

  /// Says where f is linearized for the gradient and returns the cotangent w that belongs there.
  template <class Ws, class Sol, class Block, Backend B>
  BatchView<const typename B::Scalar> adjoint_of_block(Ws& ws, const Sol& solution,
                                                       const Block& block, const Tensor<B>& h,
                                                       const Tensor<B>& adjoint,
                                                       AdjointReport& report) {
    using S = typename B::Scalar;
    const BatchView<const S> hb = h.batch().columns(block.first, block.count);
    const BatchView<S> w = adjoint.batch().columns(block.first, block.count);
    const Samples everybody = ws.everybody(block.count);
    if constexpr (detail::unrolls<Policy>) {
      B::copy(everybody, hb, w);
      ws.map.record(solution.start_.batch().columns(block.first, block.count), policy.n);
    } else {
      if constexpr (Policy::needs_inverse)
        require(block.inverse != nullptr,
                "Equilibrium::gradient: there is no inverse: the solve has not ended well, "
                "or its last gradient has been taken");
      auto& jacobian = ws.map.linearize(solution.z.batch().columns(block.first, block.count));
      policy.template adjoint<B>(everybody, jacobian, block.inverse.get(), hb, w, ws.adjoint);
      if (certified)
        certify<B>(everybody, jacobian, hb, BatchView<const S>(w), ws.certificate,
                   ws.adjoint.report);
      B::when_done([&report, &of_block = ws.adjoint.report, first = block.first] {
        std::copy(of_block.samples.begin(), of_block.samples.end(), report.samples.begin() + first);
      });
    }
    return w;
  }

  template <Backend B>
  static void add(const Tensor<B>& from, const Tensor<B>& to) {
    using S = typename B::Scalar;
    elementwise(B{}, to.size(), std::plus<S>{}, to.data(), to.data(), from.data());
  }

  /// The workspaces for a solution's kind of arguments; they live as long as the layer.
  template <Backend B, std::size_t NX, std::size_t NP>
  detail::LendingPool<Workspace<B, NX, NP>>& workspaces(const Solution<B, NX, NP>&) {
    using Pool = detail::LendingPool<Workspace<B, NX, NP>>;
    require(pools_mutex_ != nullptr, "Equilibrium: this layer has been moved from");
    const std::lock_guard lock(*pools_mutex_);
    for (auto& [type, pool] : pools_)
      if (type == std::type_index(typeid(Pool))) return *static_cast<Pool*>(pool.get());
    pools_.emplace_back(typeid(Pool), std::make_shared<Pool>());
    return *static_cast<Pool*>(pools_.back().second.get());
  }

  F f_;
  std::unique_ptr<std::mutex> pools_mutex_ = std::make_unique<std::mutex>();
  std::vector<std::pair<std::type_index, std::shared_ptr<void>>> pools_;
};

/// An equilibrium layer of f, solver and gradient method chosen at compile time.
template <FixedPointSolver Solver = Broyden<>, BackwardPolicy Policy = Gdeq, class F>
auto equilibrium(F f, Solver solver = {}, Policy policy = {}) {
  return Equilibrium<Solver, Policy, F>(std::move(f), std::move(solver), std::move(policy));
}

// What it does not take says why.

template <class Solver, class Policy = Gdeq, class F>
void equilibrium(F, Solver = {}, Policy = {}) {
  static_assert(FixedPointSolver<Solver>,
                "deq: the first template argument of equilibrium, or the argument after f, is the "
                "solver: Broyden<>, Anderson or FixedPoint");
  static_assert(BackwardPolicy<Policy>,
                "deq: the second template argument of equilibrium, or the last argument, is the "
                "gradient method: Gdeq, Jfb, Npg, Implicit<>, Unrolled or Exact");
}
template <template <class, class> class Solver, class Policy = Gdeq, class F>
void equilibrium(F) {
  static_assert(sizeof(F) == 0, "deq: write Broyden<> for Broyden");
}
template <class Solver, template <FixedPointSolver> class Policy, class F>
void equilibrium(F) {
  static_assert(sizeof(F) == 0, "deq: write Implicit<> for Implicit");
}

}  // namespace deq
