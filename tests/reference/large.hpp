// SPDX-License-Identifier: MIT
// The comparisons of the LARGE network, whose weights are a formula.
#pragma once

#include <fstream>
#include <map>
#include <sstream>

#include "tiny.hpp"

namespace reference {

/// Element i of tensor t: a hash of (set, t, i), spread over center +- amp.
class Formula {
 public:
  explicit Formula(std::uint64_t set) : set_(set) {}

  float operator()(std::uint64_t tensor, std::uint64_t i, double center, double amp) const {
    const std::uint64_t base = mix((set_ << 32) + tensor);
    const std::uint64_t r = mix(base + (i + 1) * 0x9E3779B97F4A7C15u) >> 40;
    return static_cast<float>(center + amp * (static_cast<double>(r) * 0x1p-23 - 1));
  }
  template <class S>
  std::vector<S> tensor(std::uint64_t index, Index size, double center, double amp) const {
    std::vector<S> values(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<S>((*this)(index, i, center, amp));
    return values;
  }

 private:
  static std::uint64_t mix(std::uint64_t x) {
    x ^= x >> 30;
    x *= 0xBF58476D1CE4E5B9u;
    x ^= x >> 27;
    x *= 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  std::uint64_t set_;
};

/// A row of large.weights_formula.csv.
struct FormulaRow {
  std::uint64_t index;
  std::string name;
  double center, amp, sum, sum_of_squares;
};

inline std::vector<FormulaRow> read_formula(const std::filesystem::path& path) {
  std::ifstream file(path);
  deq::require<deq::IoError>(file.good(), "cannot open ", path.string());
  std::vector<FormulaRow> rows;
  std::string line, shape, comma;
  std::getline(file, line);
  while (std::getline(file, line)) {
    std::vector<std::string> cells;
    std::istringstream text(line);
    for (std::string cell; std::getline(text, cell, ',');) cells.push_back(cell);
    deq::require<deq::FormatError>(cells.size() == 9, path.string(),
                                   ": a row needs 9 cells: ", line);
    rows.push_back({std::stoull(cells[0]), cells[1], std::stod(cells[3]), std::stod(cells[4]),
                    std::stod(cells[5]), std::stod(cells[6])});
  }
  return rows;
}

/// Fills the network from the formula, and checks the generator by the stored sums.
template <class B>
void load_formula(deq::Mdeq<B>& model, const std::vector<FormulaRow>& rows, const Formula& formula,
                  Comparison& out) {
  using S = typename B::Scalar;
  std::map<std::string, deq::Tensor<B>*> targets;
  for (auto& p : model.parameters()) targets[p.name] = &p.value;
  for (std::size_t i = 0; i < model.batch_norms().size(); ++i) {
    const std::string& name = model.layout().batch_norms[i].name;
    targets[name + ".running_mean"] = &model.batch_norms()[i].running_mean;
    targets[name + ".running_var"] = &model.batch_norms()[i].running_var;
  }
  double worst = 0;
  for (const FormulaRow& row : rows) {
    const auto target = targets.find(row.name);
    deq::require<deq::FormatError>(target != targets.end(), "LARGE has no tensor ", row.name);
    const auto values = formula.tensor<S>(row.index, target->second->size(), row.center, row.amp);
    double sum = 0, squares = 0;
    for (const S v : values) {
      sum += static_cast<double>(v);
      squares += static_cast<double>(v) * static_cast<double>(v);
    }
    worst = worse(worst, std::abs(sum - row.sum) / std::sqrt(row.sum_of_squares));
    worst = worse(worst, std::abs(squares - row.sum_of_squares) / row.sum_of_squares);
    *target->second = deq::Tensor<B>(target->second->shape(), values);
    targets.erase(target);
  }
  out.check("every tensor is generated", static_cast<double>(targets.size()), 0);
  out.check("sums of the generated tensors", worst, 1e-12);
}

template <deq::Backend B>
void check_large(const std::filesystem::path& directory, std::uint64_t set, Comparison& out) {
  using S = typename B::Scalar;
  constexpr bool single = std::is_same_v<S, float>;
  const Stored stored(directory / "large.float32.safetensors");
  const Formula formula(set);
  deq::Mdeq<B> model(deq::MdeqConfig::large());
  const auto rows = read_formula(directory / "large.weights_formula.csv");
  load_formula(model, rows, formula, out);

  const deq::Tensor<B> image(stored.file().shape("image"), stored.file().read<S>("image"));
  std::vector<Index> labels;
  for (const double label : stored.read("label")) labels.push_back(static_cast<Index>(label));
  const Index count = image.extent(0), dim = model.config().state_size();
  const double amp = 1.7320507764816284;
  const auto state = [&](std::uint64_t index) {
    return deq::mdeq_state_from_nchw(
        model.config(),
        deq::Tensor<B>({count, dim}, formula.tensor<S>(index, count * dim, 0, amp)));
  };
  const auto stored_order = [&](const deq::Tensor<B>& z_or_f) {
    return to_double(deq::mdeq_state_to_nchw(model.config(), z_or_f));
  };
  const deq::Tensor<B> z = state(100000), cotangent = state(100001);

  const deq::Broyden<> solver{.stopping = stopping(18), .memory = 18};
  if constexpr (single) {
    const auto all = model.values();
    const std::vector<deq::Tensor<B>> x{
        model.stem(image, std::span<const deq::Tensor<B>>(all), deq::BatchNormMode::train)};
    const auto theta = model.layer_parameters(std::span<const deq::Tensor<B>>(all));
    auto f = model.function(false);
    typename BatchMap<B>::Map map;
    map.bind(f, {dim}, x, theta);
    deq::Everybody<B> everybody;
    deq::Tensor<B> y({count, dim});
    map.evaluate(everybody(count), z.batch(), y.batch());
    out.tensor(stored, "injection.0", to_double(deq::nhwc::to_nchw(x[0])), 5e-6);
    out.tensor(stored, "f", stored_order(y), 5e-6);
    map.linearize(z.batch()).vjp(everybody(count), cotangent.batch(), y.batch());
    out.tensor(stored, "vjp.z", stored_order(y), 5e-6);
    load_formula(model, rows, formula, out);  // the stem has moved the running statistics
  }
  for (const bool training : {false, true}) {
    const std::string mode = training ? "bntrain." : "bneval.";
    const std::string prefix = single ? mode : "float64." + mode;
    deq::MdeqClassifier<B, deq::Broyden<>, deq::Jfb> classifier(model, solver);
    const deq::PassReport pass =
        training ? classifier.train(image, labels) : classifier.evaluate(image, labels);
    const deq::Tensor<B> logits = training ? classifier.last_logits() : classifier.logits(image);
    const auto& trace = pass.solve.relative_trace[0];
    if (single) {
      const auto expected = stored.read(prefix + "trace.rel");
      double early = 0, late = 0;
      for (std::size_t k = 0; k < expected.size(); ++k) {
        double& worst = k < 8 ? early : late;
        worst = worse(worst, std::abs(trace.at(k) - expected[k]) / expected[k]);
      }
      out.check(prefix + "trace.rel (steps 1 to 8)", early, 1e-4);
      out.check(prefix + "trace.rel (steps 9 on)", late, 5e-3);
      const std::vector<double> loss{pass.loss};
      out.absolute(stored, prefix + "loss", loss, 1e-4);
      out.tensor(stored, prefix + "z", stored_order(classifier.solution().z), 1e-5);
    } else {
      out.each(stored, prefix + "trace.rel", trace, 1e-9);
    }
    out.absolute(stored, prefix + "logits", to_double(logits), single ? 1e-4 : 1e-10);
  }
}

}  // namespace reference
