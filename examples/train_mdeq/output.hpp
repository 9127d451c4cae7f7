// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "../support/progress.hpp"
#include "trainer.hpp"

namespace examples {

/// Makes the directory for the results. Throws deq::IoError.
inline void make_directory(const std::filesystem::path& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  deq::require<deq::IoError>(!error, "cannot make the directory ", path.string(), ": ",
                             error.message());
}

/// Where a training of `steps` steps is, `step` of them done, for the progress bar.
inline Progress training_progress(std::string label, std::int64_t step, std::int64_t steps,
                                  std::int64_t steps_per_epoch, const Totals& epoch) {
  return {.label = std::move(label),
          .epoch = static_cast<int>((step - 1) / steps_per_epoch) + 1,
          .epochs = static_cast<int>(steps / steps_per_epoch),
          .fraction = static_cast<double>(step) / static_cast<double>(steps),
          .loss = epoch.mean(&Totals::loss),
          .accuracy = epoch.mean(&Totals::correct),
          .iterations = epoch.mean(&Totals::iterations),
          .residual = epoch.mean(&Totals::residual)};
}

}  // namespace examples
