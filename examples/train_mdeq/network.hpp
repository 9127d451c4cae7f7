// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include <deq/model/mdeq_config.hpp>

#include "options.hpp"

namespace examples {

/// What the configuration is of the model that was asked for.
inline deq::MdeqConfig model_config(const Options& options) {
  deq::MdeqConfig config;
  if (options.model == "tiny") {
    config = deq::MdeqConfig::tiny();
  } else if (options.model == "large") {
    config = deq::MdeqConfig::large();
  } else {
    config = {.channels = {8, 16},
              .head_channels = {4, 8},
              .final_channels = 64,
              .image_size = 16,
              .expansion = 2};
  }
  config.dropout = options.recipe.dropout;
  return config;
}

}  // namespace examples
