// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <deq/core/random.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/model/mdeq_function.hpp>
#include <deq/model/mdeq_layout.hpp>
#include <deq/nn/parameter.hpp>
#include <deq/nn/read.hpp>

namespace deq {

/// The weights of an MDEQ classifier, and what is around its equilibrium: the stem that turns an
/// image into the injection x_0, the head that turns the equilibrium into logits. The equilibrium
/// itself is the business of a solver and a backward policy: see MdeqClassifier.
template <Backend B>
class Mdeq {
  using S = typename B::Scalar;

 public:
  /// A freshly initialised network; the same weights for the same seed.
  explicit Mdeq(const MdeqConfig& config, std::uint64_t seed = 0)
      : config_(config), layout_(config) {
    for (const MdeqLayout::Entry& e : layout_.parameters) parameters_.emplace_back(e.name, e.shape);
    for (const MdeqLayout::Norm& n : layout_.batch_norms) norms_.emplace_back(n.channels);
    initialise(seed);
  }

  const MdeqConfig& config() const { return config_; }
  const MdeqLayout& layout() const { return layout_; }
  Parameters<B>& parameters() { return parameters_; }
  const Parameters<B>& parameters() const { return parameters_; }
  /// Running statistics, in the order of layout().batch_norms.
  std::vector<BatchNormState<B>>& batch_norms() { return norms_; }

  /// The values of all parameters, in order: what stem, layer_parameters and head read.
  PoolVector<Tensor<B>> values() const {
    PoolVector<Tensor<B>> list;
    for (const Parameter<B>& p : parameters_) list.push_back(p.value);
    return list;
  }

  /// x_0 (N, R, R, C_0) of the images (N, image_channels, R, R). Throws ShapeError.
  template <TensorLike V>
  V stem(const V& images, std::span<const V> all, BatchNormMode mode) {
    const Index channels = config_.image_channels, size = config_.image_size;
    const Shape& shape = images.shape();
    require<ShapeError>(shape.rank() == 4 && shape == Shape{shape[0], channels, size, size},
                        "Mdeq: images must be (N, ", channels, ", ", size, ", ", size, "), got ",
                        shape);
    detail::Cursor<V> p(all.first(layout_.stem_end));
    Norms norms{norms_.data(), mode};
    V a = nhwc::from_nchw(images);
    while (!p.empty()) {
      const V& weight = p.next();
      a = conv_norm(a, weight, p, norms,
                    {.conv = {.padding = (weight.extent(2) - 1) / 2}, .relu = true});
    }
    return as_scalars(a);
  }

  /// What f is given: its parameters with the weight norm w = g v / ||v|| carried out, once a pass.
  template <TensorLike V>
  PoolVector<V> layer_parameters(std::span<const V> all) const {
    PoolVector<V> effective;
    PoolVector<std::pair<std::size_t, std::size_t>> normed;  // which is made of whose norm
    for (std::size_t i = layout_.stem_end; i < layout_.layer_end; ++i) {
      if (layout_.parameters[i].initial == Initial::norm_of_v) {
        normed.emplace_back(effective.size(), i);
        ++i;
      }
      effective.push_back(all[i]);
    }
    side_by_side(all[0], static_cast<Index>(normed.size()), [&](Index k) {
      const auto [place, norm] = normed[static_cast<std::size_t>(k)];
      effective[place] = weight_norm(all[norm + 1], all[norm]);
    });
    return effective;
  }

  /// f itself, for `dropout` or without it.
  MdeqFunction function(bool dropout) const { return {config_, dropout}; }

  /// Logits (N, classes) of a state (N, D), which is given up as soon as it has been cut.
  template <TensorLike V>
  V head(V z, std::span<const V> all, BatchNormMode mode) {
    detail::Cursor<V> p(all.subspan(layout_.layer_end));
    Norms norms{norms_.data() + (config_.has_stage0() ? 3 : 2), mode};
    PoolVector<V> branches = mdeq_branches(config_, std::exchange(z, {})), widened;
    side_by_side(branches[0], config_.branches(), [&](Index i) {
      V& y = branches[static_cast<std::size_t>(i)];
      widened.push_back(bottleneck(std::exchange(y, {}), p, norms));
    });
    V t = widened[0];
    for (std::size_t i = 1; i < widened.size(); ++i) {
      const V &weight = p.next(), &bias = p.next();
      t = conv_norm(t, weight, p, norms, {.conv = {.stride = 2, .padding = 1}, .relu = true},
                    {.bias = &bias});
      t = nhwc::upsample_add(widened[i], t, 1);
    }
    const V &weight = p.next(), &bias = p.next();
    const V pooled =
        conv_norm(t, weight, p, norms, {.relu = true, .average = true}, {.bias = &bias});
    const V& classifier = p.next();
    return linear(pooled, classifier, p.next());
  }

  /// Reads every parameter and running statistic under its PyTorch name; a file without a number of
  /// batches leaves that as it is. Names that the network does not have are ignored. Throws
  /// FormatError for a missing name, another shape or a number of batches that is none, and then
  /// changes nothing.
  void load(const SafetensorsFile& file) {
    std::vector<Tensor<B>> values;
    for (const Parameter<B>& p : parameters_)
      values.push_back(read_tensor<B>(file, p.name, p.value.shape()));
    std::vector<BatchNormState<B>> norms = norms_;
    for (std::size_t i = 0; i < norms.size(); ++i) {
      const std::string& name = layout_.batch_norms[i].name;
      for (const auto& [statistic, part] : {std::pair(&norms[i].running_mean, ".running_mean"),
                                            std::pair(&norms[i].running_var, ".running_var")})
        *statistic = read_tensor<B>(file, name + part, statistic->shape());
      const std::string batches = name + ".num_batches_tracked";
      if (file.contains(batches)) norms[i].batches = read_count(file, batches);
    }
    for (std::size_t i = 0; i < values.size(); ++i) parameters_[i].value = std::move(values[i]);
    std::move(norms.begin(), norms.end(), norms_.begin());
  }
  /// Adds every parameter and running statistic under its PyTorch name.
  void save(SafetensorsWriter& writer) const {
    const auto add = [&](const std::string& name, const Tensor<B>& t) {
      writer.add<S>(name, t.shape(), t.to_host());
    };
    for (const Parameter<B>& p : parameters_) add(p.name, p.value);
    for (std::size_t i = 0; i < norms_.size(); ++i) {
      const std::string& name = layout_.batch_norms[i].name;
      add(name + ".running_mean", norms_[i].running_mean);
      add(name + ".running_var", norms_[i].running_var);
      const std::int64_t batches = norms_[i].batches;
      writer.add<std::int64_t>(name + ".num_batches_tracked", {}, std::span(&batches, 1));
    }
  }

 private:
  /// Hands out the batch normalisations in order.
  struct Norms {
    BatchNormState<B>* next;
    BatchNormMode mode;
  };

  /// relu(BN(x * weight + bias)), the norm's parameters the next ones.
  template <class V>
  static V conv_norm(const V& x, const V& weight, detail::Cursor<V>& p, Norms& norms,
                     const nhwc::ConvBatchNormOptions& options, nhwc::ConvNormParts<V> parts = {}) {
    parts.scale = &p.next();
    parts.shift = &p.next();
    return nhwc::conv_batch_norm(x, weight, *norms.next++, norms.mode, options, parts);
  }

  template <class V>
  static V bottleneck(const V& y, detail::Cursor<V>& p, Norms& norms) {
    const auto plain = [&](const V& x, const nhwc::ConvBatchNormOptions& options) {
      return nhwc::conv_batch_norm(x, p.next(), *norms.next++, norms.mode, options);
    };
    V a = plain(y, {.relu = true});
    a = plain(a, {.conv = {.padding = 1}, .relu = true});
    const V& widening = p.next();
    BatchNormState<B>& last = *norms.next++;
    const V& projection = p.next();
    const V residual = conv_norm(y, projection, p, norms, {});
    return nhwc::conv_batch_norm(a, widening, last, norms.mode, {.relu = true},
                                 {.residual = &residual});
  }

  void initialise(std::uint64_t seed) {
    for (std::size_t i = 0; i < parameters_.size(); ++i) {
      const Initial initial = layout_.parameters[i].initial;
      const Shape& shape = parameters_[i].value.shape();
      std::vector<S> values(static_cast<std::size_t>(shape.size()));
      Random random(seed, Purpose::initialization, 0, static_cast<std::uint32_t>(i));
      // The classifier's bias has its weight's fan-in, F.
      const Index fan_in =
          shape.rank() > 1 ? shape.product(1, shape.rank()) : config_.final_channels;
      const double bound = 1 / std::sqrt(static_cast<double>(fan_in));
      for (S& value : values) {
        switch (initial) {
          case Initial::zero: value = 0; break;
          case Initial::one: value = 1; break;
          case Initial::normal: value = static_cast<S>(0.01 * random.normal()); break;
          case Initial::uniform_fan_in:
            value = static_cast<S>(random.uniform(-bound, bound));
            break;
          case Initial::norm_of_v: break;
        }
      }
      parameters_[i].value = Tensor<B>(shape, values);
    }
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      if (layout_.parameters[i].initial == Initial::norm_of_v) {
        const std::vector<S> v = parameters_[i + 1].value.to_host();
        const auto rows = static_cast<std::size_t>(parameters_[i].value.size());
        const std::size_t width = v.size() / rows;
        std::vector<S> g(rows);
        for (std::size_t o = 0; o < rows; ++o) {
          double sum = 0;
          for (std::size_t k = 0; k < width; ++k)
            sum += static_cast<double>(v[o * width + k]) * static_cast<double>(v[o * width + k]);
          g[o] = static_cast<S>(std::sqrt(sum));
        }
        parameters_[i].value = Tensor<B>(parameters_[i].value.shape(), g);
      }
  }

  MdeqConfig config_;
  MdeqLayout layout_;
  Parameters<B> parameters_;
  std::vector<BatchNormState<B>> norms_;
};

}  // namespace deq
