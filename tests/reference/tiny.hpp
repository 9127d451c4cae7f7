// SPDX-License-Identifier: MIT
// The comparisons of the TINY network: tests/data/README.md says what the files hold.
#pragma once

#include <memory>
#include <optional>

#include <deq/deq.hpp>

#include "comparison.hpp"

namespace reference {

template <class B>
std::vector<double> to_double(const deq::Tensor<B>& t) {
  const auto host = t.to_host();
  return {host.begin(), host.end()};
}

/// The accuracy that is asked for, after the table "Suggested tolerances".
struct Tolerances {
  double layer, parameters, trace, late_trace, state, logits, gradients, one_gradient, gdeq;

  static Tolerances of(double) {
    return {1e-12, 1e-11, 1e-9, 1e-9, 1e-11, 1e-10, 1e-9, 1e-9, 1e-8};
  }
  static Tolerances of(float) { return {5e-6, 2e-5, 1e-4, 5e-3, 1e-5, 1e-4, 1e-3, 1e-2, 2e-2}; }
};

/// The network, the batch and the mode of one case.
template <deq::Backend B>
struct Problem {
  using S = typename B::Scalar;

  Problem(const std::filesystem::path& directory, const std::string& network, bool dropout,
          deq::BatchNormMode norm_mode)
      : mode(norm_mode),
        model(deq::MdeqConfig::tiny()),
        inputs(directory / "tiny.inputs.safetensors"),
        weights(directory / (network + ".weights.safetensors")) {
    model.load(weights.file());
    image = tensor("image");
    z = state("z");
    cotangent = state("cotangent");
    probe = state("probe");
    for (const double label : inputs.read("label")) labels.push_back(static_cast<Index>(label));
    if (dropout)
      for (Index i = 0; i < model.config().branches(); ++i)
        masks.push_back(tensor("mask." + std::to_string(i)));
  }

  deq::Tensor<B> tensor(const std::string& name) const {
    return deq::Tensor<B>(inputs.file().shape(name), inputs.file().read<S>(name));
  }
  deq::Tensor<B> state(const std::string& name) const {
    return deq::mdeq_state_from_nchw(model.config(), tensor(name));
  }
  /// The numbers of a state in the order in which the files have them.
  std::vector<double> stored_order(const deq::Tensor<B>& z_or_f) const {
    return to_double(deq::mdeq_state_to_nchw(model.config(), z_or_f));
  }
  /// The running statistics as they were before a training pass moved them.
  void reload() { model.load(weights.file()); }

  /// x_0, then the masks, and theta: what f is called with.
  void bind_layer() {
    const auto all = model.values();
    x = {model.stem(image, std::span(all), mode)};
    x.insert(x.end(), masks.begin(), masks.end());
    theta = model.layer_parameters(std::span<const deq::Tensor<B>>(all));
    reload();
  }
  deq::MdeqFunction function() const { return model.function(!masks.empty()); }

  deq::BatchNormMode mode;
  deq::Mdeq<B> model;
  Stored inputs, weights;
  deq::Tensor<B> image, z, cotangent, probe;
  std::vector<Index> labels;
  std::vector<deq::Tensor<B>> masks, x;
  deq::PoolVector<deq::Tensor<B>> theta;
};

/// f on the whole batch as a fixed-point map.
template <deq::Backend B>
struct BatchMap {
  using Map = deq::TapedMap<B, deq::MdeqFunction, std::dynamic_extent, std::dynamic_extent>;

  explicit BatchMap(Problem<B>& p) : function(p.function()) {
    map.bind(function, {p.model.config().state_size()}, p.x, p.theta);
  }

  deq::MdeqFunction function;
  Map map;
};

/// The stopping rule of the stored solves: norms over the batch, `steps` steps, no early stop
/// unless a tolerance is given.
inline deq::Stopping stopping(int steps, double tolerance = 0,
                              deq::Scope scope = deq::Scope::batch) {
  return {.max_iterations = steps,
          .relative_tolerance = tolerance,
          .divergence_factor = INFINITY,
          .stall_window = 0,
          .scope = scope,
          .trace = true};
}

/// Stem, f and the vector-Jacobian products at the stored random state.
template <deq::Backend B>
void check_layer(Problem<B>& p, const Stored& stored, Comparison& out) {
  using S = typename B::Scalar;
  const Tolerances tol = Tolerances::of(S());
  deq::Tape<B> tape;
  std::vector<deq::Var<B>> all;
  for (const auto& parameter : p.model.parameters()) all.push_back(tape.input(parameter.value));
  const deq::Var<B> image = tape.input(p.image), z = tape.input(p.z);
  const deq::Var<B> x0 = p.model.stem(image, std::span<const deq::Var<B>>(all), p.mode);
  p.reload();
  const Index half = p.model.config().resolution(1);
  const deq::Var<B> x1 = tape.input(
      deq::Tensor<B>({p.image.extent(0), half, half, p.model.config().channels_of(1)}, S(0)));
  std::vector<deq::Var<B>> x{x0, x1};
  for (const auto& mask : p.masks) x.push_back(mask);
  const auto theta = p.model.layer_parameters(std::span<const deq::Var<B>>(all));
  const deq::Var<B> f =
      p.function()(z, std::span<const deq::Var<B>>(x), std::span<const deq::Var<B>>(theta));
  out.tensor(stored, "injection.0", to_double(deq::nhwc::to_nchw(x0.value())), tol.layer);
  out.tensor(stored, "f", p.stored_order(f.value()), tol.layer);

  const std::vector<deq::Var<B>> special{z, x0, x1, image};
  const std::vector<std::string> special_names{"vjp.z", "vjp.injection.0", "vjp.injection.1",
                                               "vjp.image"};
  const auto gradients = [&](std::span<const deq::Var<B>> wrt) {
    std::vector<deq::Tensor<B>> grads;
    for (const auto& v : wrt) grads.emplace_back(v.shape());
    tape.vjp(f, p.cotangent, wrt, grads);
    return grads;
  };
  // x0 is not a leaf: asked for beside the image, it keeps its own cotangent and passes it on.
  const auto special_grads = gradients(special);
  const std::vector<std::vector<double>> in_stored_order{
      p.stored_order(special_grads[0]), to_double(deq::nhwc::to_nchw(special_grads[1])),
      to_double(deq::nhwc::to_nchw(special_grads[2])), to_double(special_grads[3])};
  for (std::size_t i = 0; i < special.size(); ++i)
    out.tensor(stored, special_names[i], in_stored_order[i], tol.layer);
  const auto parameter_grads = gradients(all);
  for (std::size_t i = 0; i < all.size(); ++i)
    out.tensor(stored, "vjp.param." + p.model.parameters()[i].name, to_double(parameter_grads[i]),
               tol.parameters);
}

inline std::vector<double> transposed(const std::vector<std::vector<double>>& traces) {
  std::vector<double> rows;
  for (std::size_t k = 0; !traces.empty() && k < traces[0].size(); ++k)
    for (const auto& trace : traces) rows.push_back(trace[k]);
  return rows;
}

/// One forward solve from z = 0, and the products with the inverse that it leaves.
template <deq::Backend B>
std::vector<double> check_solve(Problem<B>& p, const Stored& stored, Comparison& out,
                                const std::string& name, Index memory, deq::WhenFull when_full) {
  using S = typename B::Scalar;
  const Tolerances tol = Tolerances::of(S());
  BatchMap<B> f(p);
  const Index count = p.image.extent(0), dim = f.map.dim();
  const auto solve = [&](deq::Scope scope, deq::Tensor<B>& z,
                         typename deq::Broyden<>::template Workspace<B>& ws) {
    const deq::Broyden<> solver{
        .stopping = stopping(18, 0, scope), .memory = memory, .when_full = when_full};
    solver.template solve<deq::KeepInverse::yes>(f.map, z.batch(), ws, deq::NoObserver{});
  };

  // In single precision the late residuals are mostly rounding: two tolerances, as the table says,
  // and a single sample's late ones (`width` = samples) are compared in double only.
  const auto check_trace = [&](const std::string& which, const std::vector<double>& trace,
                               std::size_t width) {
    if (!stored.has(which)) return;
    const std::vector<double> expected = stored.read(which);
    double early = 0, late = 0;
    for (std::size_t k = 0; k < expected.size(); ++k) {
      double& worst = k < 8 * width ? early : late;
      worst = worse(worst, std::abs(trace.at(k) - expected[k]) / expected[k]);
    }
    out.check(which + " (steps 1 to 8)", early, tol.trace);
    if (width == 1 || std::is_same_v<S, double>)
      out.check(which + " (steps 9 on)", late, tol.late_trace);
  };
  typename deq::Broyden<>::template Workspace<B> ws;
  deq::Tensor<B> z({count, dim}, S(0));
  const auto width = static_cast<std::size_t>(count);
  solve(deq::Scope::sample, z, ws);
  check_trace(name + ".abs_per_sample", transposed(ws.report.absolute_trace), width);
  check_trace(name + ".rel_per_sample", transposed(ws.report.relative_trace), width);

  B::fill(z.data(), z.size(), 0);
  solve(deq::Scope::batch, z, ws);
  check_trace(name + ".abs", ws.report.absolute_trace[0], 1);
  check_trace(name + ".rel", ws.report.relative_trace[0], 1);
  const std::vector<double> best{static_cast<double>(ws.report.samples[0].best_iteration)};
  out.each(stored, name + ".best_step", best, 0);
  out.tensor(stored, "z." + name, p.stored_order(z), tol.state);

  deq::Everybody<B> ids;
  const deq::Samples everybody = ids(count);
  deq::Tensor<B> product({count, dim});
  deq::Array<B> scratch, dots(count);
  const auto dot = [&](const deq::Tensor<B>& a, const deq::Tensor<B>& b) {
    B::dot(everybody, a.batch(), b.batch(), dots.data());
    std::vector<S> host(static_cast<std::size_t>(count));
    B::download_bytes(host.data(), dots.data(), host.size() * sizeof(S));
    return std::vector<double>(host.begin(), host.end());
  };
  const auto roots = [](std::vector<double> x) {
    for (double& v : x) v = std::sqrt(v);
    return x;
  };
  ws.inverse.apply(everybody, p.probe.batch(), product.batch(), scratch);
  out.each(stored, name + ".Binv_p.norm", roots(dot(product, product)), tol.gdeq);
  out.each(stored, name + ".p_Binv_p", dot(p.probe, product), tol.gdeq);
  ws.inverse.apply_transpose(everybody, p.probe.batch(), product.batch(), scratch);
  out.each(stored, name + ".BinvT_p.norm", roots(dot(product, product)), tol.gdeq);
  // Relative to the size of what is added up, not to a sum that may cancel.
  if (stored.has("zdot_probe." + name)) {
    const auto expected = stored.read("zdot_probe." + name), got = dot(z, p.probe);
    double worst = 0;
    for (std::size_t s = 0; s < got.size(); ++s)
      worst = worse(worst, std::abs(got[s] - expected[s]));
    out.check("zdot_probe." + name, worst / (norm(to_double(z)) * norm(to_double(p.probe))),
              tol.state);
  }
  return to_double(z);
}

/// The solve with the original's early stop, and the one that is carried on to 1e-12.
template <deq::Backend B>
void check_stopped_solves(Problem<B>& p, const Stored& stored, Comparison& out) {
  using S = typename B::Scalar;
  BatchMap<B> f(p);
  typename deq::Broyden<>::template Workspace<B> ws;
  deq::Tensor<B> z({p.image.extent(0), f.map.dim()}, S(0));
  const auto solve = [&](deq::Stopping rule, Index memory) {
    B::fill(z.data(), z.size(), 0);
    deq::Broyden<>{.stopping = rule, .memory = memory}.template solve<deq::KeepInverse::no>(
        f.map, z.batch(), ws, deq::NoObserver{});
    return ws.report.samples[0];
  };
  const deq::SampleReport eps = solve(stopping(18, 1e-3), 18);
  const std::vector<double> steps{static_cast<double>(eps.iterations)},
      best{static_cast<double>(eps.best_iteration)};
  out.each(stored, "eps.stop_step", steps, 0);
  out.each(stored, "eps.best_step", best, 0);
  out.each(stored, "eps.rel", ws.report.relative_trace[0], Tolerances::of(S()).trace);

  if (!stored.has("z.star")) return;
  const deq::SampleReport star = solve(stopping(80, 2e-14), 80);
  out.check("relative residual of z*", star.relative, 1e-12);
  out.tensor(stored, "z.star", p.stored_order(z), Tolerances::of(S()).state * 10);
}

/// One training pass on `image`, from the stored running statistics.
template <deq::Backend B, class Classifier>
deq::PassReport train(Problem<B>& p, Classifier& classifier, const deq::Tensor<B>& image) {
  p.reload();
  classifier.norm_mode = p.mode;
  return classifier.train(image, p.labels, std::span(std::as_const(p.masks)));
}

using Gradients = std::vector<std::vector<double>>;

template <deq::Backend B>
Gradients gradients_of(const Problem<B>& p) {
  Gradients gradients;
  for (const auto& parameter : p.model.parameters()) gradients.push_back(to_double(parameter.grad));
  return gradients;
}

/// The gradients after one training pass on the image with relative noise of 1e-6, which is what
/// rounding to float32 makes of it by the time it has gone through f.
template <class Policy>
Gradients gradients_nearby(Problem<deq::Cpu<double>>& p, deq::Broyden<> solver, Policy policy,
                           std::uint64_t seed) {
  std::vector<double> image = to_double(p.image);
  deq::Random random(seed, deq::Purpose::probe);
  for (double& v : image) v *= 1 + 1e-6 * random.normal();
  deq::MdeqClassifier<deq::Cpu<double>, deq::Broyden<>, Policy> classifier(p.model, solver, policy);
  train(p, classifier, deq::Tensor<deq::Cpu<double>>(p.image.shape(), image));
  return gradients_of(p);
}

/// How far gradients are from others: over all parameters, and for the one that is farthest off.
struct Deviation {
  double all = 0, worst = 0;
  std::size_t worst_parameter = 0;

  /// error(i) is the relative error of parameter i.
  template <class Error>
  Deviation(const Gradients& gradients, const std::vector<std::size_t>& parameters, Error error) {
    double scales = 0;
    for (const std::size_t i : parameters) {
      const double e = error(i), scale = norm(gradients[i]);
      if (!std::isnan(worst) && !(e <= worst)) {
        worst = e;
        worst_parameter = i;
      }
      all += e * e * scale * scale;
      scales += scale * scale;
    }
    all = std::sqrt(all / scales);
  }
};

/// The gradients of one method, and what belongs to its pass.
///
/// A ReLU whose argument is zero but for rounding may take either side, in the stored numbers as
/// well, and one such unit moves the gradients by 1e-3 and more. So gradients in single precision
/// also pass if they are those of a problem `in_double` that differs by rounding.
template <class Policy, deq::Backend B>
Gradients check_method(Problem<B>& p, const Stored& solves, const Stored* grads, Comparison& out,
                       const std::string& method, deq::Broyden<> solver, Policy policy,
                       Problem<deq::Cpu<double>>* in_double) {
  using S = typename B::Scalar;
  const Tolerances tol = Tolerances::of(S());
  const double one = method.starts_with("gdeq") ? tol.gdeq : tol.one_gradient;
  deq::MdeqClassifier<B, deq::Broyden<>, Policy> classifier(p.model, solver, policy);
  const deq::PassReport pass = train(p, classifier, p.image);
  const std::vector<double> loss{pass.loss};
  out.absolute(solves, "loss." + method, loss, tol.logits);
  out.absolute(solves, "logits." + method, to_double(classifier.last_logits()), tol.logits);

  const deq::Tensor<B>& w = classifier.solution().adjoint;
  std::vector<double> norms, dots;
  const auto host = to_double(w), probe = to_double(p.probe);
  const std::size_t dim = host.size() / p.labels.size();
  for (std::size_t s = 0; s < p.labels.size(); ++s) {
    norms.push_back(norm(std::span(host).subspan(s * dim, dim)));
    double dot = 0;
    for (std::size_t i = s * dim; i < (s + 1) * dim; ++i) dot += host[i] * probe[i];
    dots.push_back(dot);
  }
  out.each(solves, "adjoint_norm." + method, norms, one);
  if (solves.has("adjoint_dot_probe." + method)) {
    const auto expected = solves.read("adjoint_dot_probe." + method);
    double worst = 0;
    for (std::size_t s = 0; s < dots.size(); ++s)
      worst = worse(worst, std::abs(dots[s] - expected[s]) / norms[s]);
    out.check("adjoint_dot_probe." + method + " / ||w||", worst, one * std::sqrt(30720.0));
  }
  const std::vector<double> stored_w = p.stored_order(w);
  out.tensor(solves, "adjoint." + method, stored_w, one);
  if (method == "jfb") {
    out.tensor(solves, "dl_dh", stored_w, tol.gradients);
    out.each(solves, "dl_dh.norm", norms, tol.gradients);
  }

  const Gradients gradients = gradients_of(p);
  if (grads == nullptr) return gradients;
  const auto name_of = [&](std::size_t i) { return p.model.parameters()[i].name; };
  const auto stored_name = [&](std::size_t i) { return method + "." + name_of(i); };
  std::vector<std::size_t> compared;
  bool rounded = false;
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (!grads->has(stored_name(i))) continue;
    rounded = rounded || grads->rounded(stored_name(i));
    // A bias before a BatchNorm with batch statistics has the gradient 0 and rounding noise.
    if (p.mode == deq::BatchNormMode::train &&
        (name_of(i) == "downsamp_modules.0.0.bias" || name_of(i) == "final_layer.0.bias"))
      out.check(stored_name(i) + " (is 0: absolute)", norm(gradients[i]),
                one > 1e-8 ? 1e-4 : 1e-12);
    else
      compared.push_back(i);
  }
  if (compared.empty()) return gradients;

  const double floor = rounded ? 5e-7 : 0;
  const double over_all = std::max(method.starts_with("gdeq") ? tol.gdeq : tol.gradients, floor);
  Deviation deviation(gradients, compared,
                      [&](std::size_t i) { return grads->error(stored_name(i), gradients[i]); });
  constexpr std::uint64_t attempts = 16;
  for (std::uint64_t k = 0; in_double && k < attempts && !(deviation.all <= over_all); ++k) {
    const Gradients nearby = gradients_nearby(*in_double, solver, policy, k);
    const Deviation other(gradients, compared,
                          [&](std::size_t i) { return relative_error(gradients[i], nearby[i]); });
    if (other.all <= over_all) {
      out.note("a unit at its kink: the stored gradients are off by " +
               std::to_string(deviation.all) + ", those of image " + std::to_string(k) +
               " with noise of 1e-6 agree");
      deviation = other;
    }
  }
  out.check(method + ".* over all parameters", deviation.all, over_all);
  // One parameter: in float32 gdeq the table gives no figure for one, so none is demanded.
  if (!(method.starts_with("gdeq") && tol.gdeq > 1e-3))
    out.check(method + ".* worst parameter, " + name_of(deviation.worst_parameter), deviation.worst,
              std::max(one, floor));
  return gradients;
}

/// Cosine with the exact gradient over [all parameters, stem and f, f only].
template <deq::Backend B>
std::vector<double> cosines(const Problem<B>& p, const Gradients& a, const Gradients& b) {
  const deq::MdeqLayout& layout = p.model.layout();
  const auto over = [&](std::size_t first, std::size_t last) {
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = first; i < last; ++i)
      for (std::size_t k = 0; k < a[i].size(); ++k) {
        ab += a[i][k] * b[i][k];
        aa += a[i][k] * a[i][k];
        bb += b[i][k] * b[i][k];
      }
    return ab / std::sqrt(aa * bb);
  };
  return {over(0, a.size()), over(0, layout.layer_end), over(layout.stem_end, layout.layer_end)};
}

/// Every gradient method of one case.
template <deq::Backend B>
void check_gradients(Problem<B>& p, const Stored& solves, const Stored* grads, Comparison& out,
                     Problem<deq::Cpu<double>>* in_double = nullptr) {
  using S = typename B::Scalar;
  using deq::Broyden;
  using deq::Implicit;
  const Broyden<> unlimited{.stopping = stopping(18), .memory = 18};
  const Broyden<> limited{.stopping = stopping(18), .memory = 5};
  const double exact_tolerance = std::is_same_v<S, double> ? 2e-14 : 1e-6;
  const deq::Stopping krylov = stopping(800, exact_tolerance, deq::Scope::sample);
  const Implicit<deq::Gmres> exact{{.stopping = krylov, .restart = 200}};
  const auto has = [&](const std::string& m) { return solves.has("loss." + m); };

  Gradients best;
  if (has("implicit_exact"))
    best = check_method(p, solves, grads, out, "implicit_exact", unlimited, exact, in_double);
  const auto run = [&](const std::string& method, const Broyden<>& solver, auto policy) {
    if (!has(method)) return;
    const auto gradient = check_method(p, solves, grads, out, method, solver, policy, in_double);
    if (!best.empty())
      out.absolute(solves, "cos." + method + ".overall", cosines(p, gradient, best),
                   Tolerances::of(S()).gradients);
  };
  run("implicit_b20", unlimited, Implicit<>{{.stopping = stopping(20), .memory = 20}});
  run("implicit_orig", Broyden<>{.stopping = stopping(18, 1e-3), .memory = 18},
      Implicit<>{{.stopping = stopping(20, 1e-3), .memory = 20}});
  run("jfb", unlimited, deq::Jfb{});
  run("npg", unlimited, deq::Npg{});
  run("gdeq", unlimited, deq::Gdeq{});
  run("gdeq_m5", limited, deq::Gdeq{});
  run("unrolled", unlimited, deq::Unrolled{10});
  if constexpr (std::is_same_v<S, double>)
    run("implicit_zstar", Broyden<>{.stopping = stopping(80, 2e-14), .memory = 80}, exact);
}

/// What the original does outside training: the head on the solver's result.
template <deq::Backend B>
void check_evaluation(Problem<B>& p, const Stored& stored, Comparison& out) {
  using S = typename B::Scalar;
  const auto run = [&](const std::string& name, double tolerance) {
    deq::MdeqClassifier<B, deq::Broyden<>, deq::Jfb> classifier(
        p.model, {.stopping = stopping(18, tolerance), .memory = 18});
    const deq::PassReport pass = classifier.evaluate(p.image, p.labels);
    const std::vector<double> loss{pass.loss};
    out.absolute(stored, "loss." + name, loss, Tolerances::of(S()).logits);
    out.absolute(stored, "logits." + name, to_double(classifier.logits(p.image)),
                 Tolerances::of(S()).logits);
  };
  if (stored.has("logits.eval_inf")) run("eval_inf", 0);
  if (stored.has("logits.eval_orig")) run("eval_orig", 1e-3);
}

/// The adjoint solve of 20 Broyden steps, residual by residual.
template <deq::Backend B>
void check_backward_trace(Problem<B>& p, const Stored& stored, Comparison& out,
                          const std::vector<double>& z) {
  using S = typename B::Scalar;
  if (!stored.has("backward_b20.abs")) return;
  // dl/dh is the adjoint of Jfb.
  deq::MdeqClassifier<B, deq::Broyden<>, deq::Jfb> classifier(
      p.model, {.stopping = stopping(18), .memory = 18});
  train(p, classifier, p.image);
  p.bind_layer();
  BatchMap<B> f(p);
  const Index count = p.image.extent(0), dim = f.map.dim();
  const deq::Tensor<B> zt({count, dim}, std::vector<S>(z.begin(), z.end()));
  const deq::Tensor<B>& h = classifier.solution().adjoint;
  deq::Everybody<B> ids;
  auto& jacobian = f.map.linearize(zt.batch());
  deq::Array<B> scratch;
  deq::AdjointMap<B, typename BatchMap<B>::Map> map(jacobian, h.batch(), ids(count), scratch);
  const auto solve = [&](double tolerance) {
    deq::Tensor<B> w({count, dim}, S(0));
    typename deq::Broyden<>::template Workspace<B> ws;
    deq::Broyden<>{.stopping = stopping(20, tolerance), .memory = 20}
        .template solve<deq::KeepInverse::no>(map, w.batch(), ws, deq::NoObserver{});
    return ws.report;
  };
  const deq::SolveReport b20 = solve(0);
  const std::vector<double> best{static_cast<double>(b20.samples[0].best_iteration)};
  out.each(stored, "backward_b20.abs", b20.absolute_trace[0], Tolerances::of(S()).late_trace);
  out.each(stored, "backward_b20.rel", b20.relative_trace[0], Tolerances::of(S()).late_trace);
  out.each(stored, "backward_b20.best_step", best, 0);
}

/// Jacobian regularisation's value and the power method, both products with J^T at z.
template <deq::Backend B>
void check_jacobian(Problem<B>& p, const Stored& stored, Comparison& out,
                    const std::vector<double>& z) {
  using S = typename B::Scalar;
  BatchMap<B> f(p);
  const Index count = p.image.extent(0), dim = f.map.dim();
  const deq::Tensor<B> zt({count, dim}, std::vector<S>(z.begin(), z.end()));
  f.map.linearize(zt.batch());
  deq::Everybody<B> ids;
  const deq::Samples everybody = ids(count);
  deq::Tensor<B> product({count, dim});
  const auto norms = [&](const deq::Tensor<B>& t) {
    std::vector<double> out_norms;
    for (Index s = 0; s < count; ++s) {
      const auto host = to_double(t.rows(s, 1));
      out_norms.push_back(norm(host));
    }
    return out_norms;
  };

  if (p.inputs.has("jac_v.0")) {
    double total = 0;
    std::vector<double> all_norms;
    for (const char* name : {"jac_v.0", "jac_v.1"}) {
      f.map.vjp(everybody, p.state(name).batch(), product.batch());
      for (const double n : norms(product)) {
        all_norms.push_back(n);
        total += n * n;
      }
    }
    const std::vector<double> loss{total / 2 / static_cast<double>(count * dim)};
    out.each(stored, "jac_loss", loss, 1e-10);
    out.each(stored, "vTJ_norm", all_norms, 1e-10);
  }
  if (p.inputs.has("power_v0")) {
    deq::Tensor<B> e = p.state("power_v0");
    std::vector<double> rayleigh, ratios;
    for (int k = 0; k < 150; ++k) {
      std::vector<S> next;
      f.map.vjp(everybody, e.batch(), product.batch());
      for (Index s = 0; s < count; ++s) {
        const auto es = to_double(e.rows(s, 1)), qs = to_double(product.rows(s, 1));
        double qe = 0;
        for (std::size_t i = 0; i < es.size(); ++i) qe += qs[i] * es[i];
        const double e_norm = norm(es), q_norm = norm(qs);
        rayleigh.push_back(qe / (e_norm * e_norm));
        ratios.push_back(q_norm / e_norm);
        for (const double q : qs) next.push_back(static_cast<S>(q) / static_cast<S>(q_norm));
      }
      e = deq::Tensor<B>(e.shape(), next);
    }
    out.each(stored, "power.rayleigh", rayleigh, 1e-9);
    out.each(stored, "power.norm_ratio", ratios, 1e-9);
  }
  out.note("jac_grad.*: left out, deq has no second derivatives");
}

/// The running statistics after one training pass.
template <deq::Backend B>
void check_batch_norm(Problem<B>& p, const Stored& stored, Comparison& out) {
  p.reload();
  deq::MdeqClassifier<B, deq::Broyden<>, deq::Jfb> classifier(
      p.model, {.stopping = stopping(18), .memory = 18});
  classifier.train(p.image, p.labels);
  for (std::size_t i = 0; i < p.model.batch_norms().size(); ++i) {
    const std::string& name = p.model.layout().batch_norms[i].name;
    const auto& state = p.model.batch_norms()[i];
    out.tensor(stored, name + ".running_mean", to_double(state.running_mean), 1e-11);
    out.tensor(stored, name + ".running_var", to_double(state.running_var), 1e-11);
    const std::vector<double> batches{static_cast<double>(state.batches)};
    out.each(stored, name + ".num_batches_tracked", batches, 0);
  }
  p.reload();
}

}  // namespace reference
