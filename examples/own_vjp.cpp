// SPDX-License-Identifier: MIT
// How do I use derivatives of my own, written by hand or by another AD library, without deq's tape?
//
// A map needs three things: its dimension, f for a set of samples, and J^T w where it was
// linearised. Here f_s(z) = tanh(W z + x_s) in plain Eigen.

#include <cstdio>

#include <Eigen/Dense>

#include <deq/deq.hpp>

using B = deq::Cpu<double>;
using Matrix = Eigen::MatrixXd;
using In = deq::BatchView<const double>;
using Out = deq::BatchView<double>;

Eigen::Map<const Matrix> matrix(In z) { return {z.data, z.dim, z.count}; }
Eigen::Map<Matrix> matrix(Out z) { return {z.data, z.dim, z.count}; }

struct MyMap {
  using Backend = B;
  Matrix W, x;

  deq::Index dim() const { return W.rows(); }

  // Column j of z and out belongs to sample a[j]: samples that have converged are not asked for
  // again.
  void evaluate(deq::Samples a, In z, Out out) const {
    matrix(out) = W * matrix(z);
    for (deq::Index j = 0; j < a.count; ++j)
      matrix(out).col(j) = (matrix(out).col(j) + x.col(a[j])).array().tanh();
  }

  // J = diag(1 - f(z)^2) W, kept as the slopes.
  struct Jacobian {
    const Matrix& W;
    Matrix slope;
    void vjp(deq::Samples a, In w, Out out) const {
      for (deq::Index j = 0; j < a.count; ++j)
        matrix(out).col(j) = W.transpose() * slope.col(a[j]).cwiseProduct(matrix(w).col(j));
    }
  };
  Jacobian linearize(In z) const { return {W, 1 - (W * matrix(z) + x).array().tanh().square()}; }
};

static_assert(deq::LinearizableMap<MyMap>);

int main() {
  constexpr deq::Index dim = 20, batch = 4;
  std::srand(1);
  MyMap f{Matrix::Random(dim, dim) * 0.25, Matrix::Random(dim, batch)};

  // z* = f(z*) for all samples, each stopping when it has converged.
  Matrix z = Matrix::Zero(dim, batch);
  const Out zv{z.data(), dim, batch};
  deq::Broyden<> solver;
  deq::Broyden<>::Workspace<B> solved;
  solver.solve<deq::KeepInverse::yes>(f, zv, solved);

  // The adjoint w ~ (I - J)^-T h of the loss h = dl/dz* = 1, by any policy, and how good it is.
  const Matrix h = Matrix::Ones(dim, batch);
  Matrix w(dim, batch);
  const In hv{h.data(), dim, batch};
  const Out wv{w.data(), dim, batch};
  auto jacobian = f.linearize(zv);
  deq::Everybody<B> everybody;
  deq::CertificateWorkspace<B> scratch;
  const auto report = [&](const char* name, auto policy) {
    typename decltype(policy)::template Workspace<B> ws;
    policy.adjoint(everybody(batch), jacobian, &solved.inverse, hv, wv, ws);
    deq::certify<B>(everybody(batch), jacobian, hv, wv, scratch, ws.report);
    std::printf("%-28s VJPs %4.1f   ||h - (I - J^T) w|| / ||h|| = %.1e\n", name,
                ws.report.mean_vjps(), ws.report.worst_residual());
    return ws.report.worst_residual();
  };
  std::printf("solved: %d of %td samples converged, at most %d steps\n",
              static_cast<int>(solved.report.count(deq::SolveStatus::converged)), batch,
              solved.report.max_iterations());
  report("Jfb", deq::Jfb{});
  report("Npg, 5 terms", deq::Npg{});
  report("Gdeq", deq::Gdeq{});
  const double refined = report("Gdeq, 3 refinements", deq::Gdeq{.refinements = 3});
  const double exact = report("Implicit, Broyden to 1e-6", deq::Implicit<>{});
  return solved.report.all_converged() && refined < 0.1 && exact < 1e-5 ? 0 : 1;
}
