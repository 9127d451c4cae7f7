// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include <deq/core/error.hpp>
#include <deq/core/types.hpp>

namespace deq {

/// A multiscale deep equilibrium network for images (Bai, Koltun, Kolter, "Multiscale Deep
/// Equilibrium Models", NeurIPS 2020), as the original code builds it. Branch i has channels[i]
/// channels at resolution image_size / 2^i.
struct MdeqConfig {
  std::vector<Index> channels;       ///< C_i
  std::vector<Index> head_channels;  ///< H_i; the head widens branch i to 4 H_i
  Index final_channels = 0;          ///< F, features of the classifier
  Index classes = 10;
  Index image_channels = 3;
  Index image_size = 32;
  Index expansion = 5;  ///< a residual block widens to expansion * C_i
  Index groups = 8;     ///< of every group norm but the last one of f, which has half
  double dropout = 0;   ///< p of the variational dropout in training

  /// 158 890 parameters; the original's cls_mdeq_TINY.
  static MdeqConfig tiny() {
    return {.channels = {24, 24}, .head_channels = {8, 16}, .final_channels = 200, .dropout = 0.25};
  }
  /// 11 097 438 parameters; the original's cls_mdeq_LARGE.
  static MdeqConfig large() {
    return {.channels = {32, 64, 128, 256},
            .head_channels = {14, 28, 56, 112},
            .final_channels = 1680,
            .dropout = 0.3};
  }

  Index branches() const { return static_cast<Index>(channels.size()); }
  /// Height and width of branch i.
  Index resolution(Index i) const { return image_size >> i; }
  Index channels_of(Index i) const { return channels[static_cast<std::size_t>(i)]; }
  Index head_of(Index i) const { return head_channels[static_cast<std::size_t>(i)]; }
  /// Values of branch i in the state of one image.
  Index branch_size(Index i) const { return channels_of(i) * resolution(i) * resolution(i); }
  /// D, values in the state of one image: branch 0 first, each as (H, W, C).
  Index state_size() const {
    Index n = 0;
    for (Index i = 0; i < branches(); ++i) n += branch_size(i);
    return n;
  }
  /// The original adds one more layer to the stem when there are more than two branches.
  bool has_stage0() const { return branches() > 2; }

  void validate() const {
    require(branches() >= 1, "MdeqConfig: needs at least one branch");
    require(head_channels.size() == channels.size(), "MdeqConfig: ", channels.size(),
            " branches but ", head_channels.size(), " head_channels");
    require(final_channels >= 1, "MdeqConfig: final_channels must be >= 1, got ", final_channels);
    require(classes >= 1, "MdeqConfig: classes must be >= 1, got ", classes);
    require(image_channels >= 1, "MdeqConfig: image_channels must be >= 1, got ", image_channels);
    require(expansion >= 1, "MdeqConfig: expansion must be >= 1, got ", expansion);
    require(dropout >= 0 && dropout < 1, "MdeqConfig: dropout must be in [0, 1), got ", dropout);
    require(groups >= 2 && groups % 2 == 0, "MdeqConfig: groups must be even, got ", groups);
    for (Index i = 0; i < branches(); ++i) {
      require(channels_of(i) >= 1 && channels_of(i) % groups == 0,
              "MdeqConfig: channels of branch ", i, " must be a multiple of ", groups, ", got ",
              channels_of(i));
      require(head_of(i) >= 1, "MdeqConfig: head_channels of branch ", i, " must be >= 1, got ",
              head_of(i));
    }
    require(image_size >> (branches() - 1) >= 1 && image_size % (Index{1} << (branches() - 1)) == 0,
            "MdeqConfig: image_size ", image_size, " cannot be halved ", branches() - 1, " times");
  }
};

}  // namespace deq
