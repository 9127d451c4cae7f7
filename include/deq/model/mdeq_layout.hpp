// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include <deq/core/shape.hpp>
#include <deq/model/mdeq_config.hpp>

namespace deq {

/// How the original initialises a parameter (MDEQ-SPEC.md, section 8).
enum class Initial {
  zero,
  one,
  normal,          ///< mean 0, standard deviation 0.01: plain convolutions and their biases
  uniform_fan_in,  ///< uniform in +-1 / sqrt(fan_in): weight_v, and the classifier
  norm_of_v,       ///< ||v||: weight_g, so that the weight starts as v
};

/// The parameters and BatchNorm layers of an MDEQ: names of the PyTorch state_dict, shapes and
/// initialisation, in the order in which the network reads them.
struct MdeqLayout {
  struct Entry {
    std::string name;
    Shape shape;
    Initial initial;
  };
  struct Norm {
    std::string name;
    Index channels;
  };

  std::vector<Entry> parameters;
  std::vector<Norm> batch_norms;
  std::size_t stem_end = 0;   ///< parameters [0, stem_end) are the stem's
  std::size_t layer_end = 0;  ///< [stem_end, layer_end) are those of f, the rest the head's

  explicit MdeqLayout(const MdeqConfig& config) {
    config.validate();
    stem(config);
    stem_end = parameters.size();
    layer(config);
    layer_end = parameters.size();
    head(config);
  }

 private:
  void conv(const std::string& name, Index out, Index in, Index kernel, bool bias = false) {
    parameters.push_back({name + ".weight", {out, in, kernel, kernel}, Initial::normal});
    if (bias) parameters.push_back({name + ".bias", {out}, Initial::normal});
  }
  void weight_norm_conv(const std::string& name, Index out, Index in, Index kernel) {
    parameters.push_back({name + ".weight_g", {out, 1, 1, 1}, Initial::norm_of_v});
    parameters.push_back({name + ".weight_v", {out, in, kernel, kernel}, Initial::uniform_fan_in});
  }
  void group_norm(const std::string& name, Index channels) { affine(name, channels); }
  void batch_norm(const std::string& name, Index channels, bool has_affine = true) {
    batch_norms.push_back({name, channels});
    if (has_affine) affine(name, channels);
  }
  void affine(const std::string& name, Index channels) {
    parameters.push_back({name + ".weight", {channels}, Initial::one});
    parameters.push_back({name + ".bias", {channels}, Initial::zero});
  }

  void stem(const MdeqConfig& c) {
    conv("downsample.0", c.channels_of(0), c.image_channels, 3);
    batch_norm("downsample.1", c.channels_of(0));
    conv("downsample.3", c.channels_of(0), c.channels_of(0), 3);
    batch_norm("downsample.4", c.channels_of(0));
    if (!c.has_stage0()) return;
    conv("stage0.0", c.channels_of(0), c.channels_of(0), 1);
    batch_norm("stage0.1", c.channels_of(0));
  }

  void layer(const MdeqConfig& c) {
    for (Index i = 0; i < c.branches(); ++i) {
      const std::string block = message("fullstage.branches.", i, ".blocks.0.");
      const Index narrow = c.channels_of(i), wide = c.expansion * narrow;
      weight_norm_conv(block + "conv1", wide, narrow, 3);
      group_norm(block + "gn1", wide);
      weight_norm_conv(block + "conv2", narrow, wide, 3);
      group_norm(block + "gn2", narrow);
      group_norm(block + "gn3", narrow);
    }
    for (Index i = 0; i < c.branches(); ++i)
      for (Index j = 0; j < c.branches(); ++j) {
        const std::string net = message("fullstage.fuse_layers.", i, ".", j, ".net.");
        if (j > i) {
          conv(net + "conv", c.channels_of(i), c.channels_of(j), 1);
          group_norm(net + "gnorm", c.channels_of(i));
        }
        for (Index q = 0; q < i - j; ++q) {
          const Index out = q + 1 < i - j ? c.channels_of(j) : c.channels_of(i);
          conv(message(net, q, ".conv"), out, c.channels_of(j), 3);
          group_norm(message(net, q, ".gnorm"), out);
        }
      }
    for (Index i = 0; i < c.branches(); ++i)
      weight_norm_conv(message("fullstage.post_fuse_layers.", i, ".conv"), c.channels_of(i),
                       c.channels_of(i), 1);
  }

  void head(const MdeqConfig& c) {
    for (Index i = 0; i < c.branches(); ++i) {
      const std::string bottleneck = message("incre_modules.", i, ".0.");
      const Index in = c.channels_of(i), narrow = c.head_of(i), wide = 4 * narrow;
      conv(bottleneck + "conv1", narrow, in, 1);
      batch_norm(bottleneck + "bn1", narrow, false);
      conv(bottleneck + "conv2", narrow, narrow, 3);
      batch_norm(bottleneck + "bn2", narrow, false);
      conv(bottleneck + "conv3", wide, narrow, 1);
      batch_norm(bottleneck + "bn3", wide, false);
      conv(bottleneck + "downsample.0", wide, in, 1);
      batch_norm(bottleneck + "downsample.1", wide);
    }
    for (Index i = 0; i + 1 < c.branches(); ++i) {
      const std::string merge = message("downsamp_modules.", i, ".");
      conv(merge + "0", 4 * c.head_of(i + 1), 4 * c.head_of(i), 3, true);
      batch_norm(merge + "1", 4 * c.head_of(i + 1));
    }
    conv("final_layer.0", c.final_channels, 4 * c.head_of(c.branches() - 1), 1, true);
    batch_norm("final_layer.1", c.final_channels);
    parameters.push_back(
        {"classifier.weight", {c.classes, c.final_channels}, Initial::uniform_fan_in});
    parameters.push_back({"classifier.bias", {c.classes}, Initial::uniform_fan_in});
  }
};

}  // namespace deq
