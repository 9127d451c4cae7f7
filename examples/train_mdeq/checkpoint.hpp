// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <deq/backend/cpu/cpu.hpp>
#include <deq/io/safetensors.hpp>
#include <deq/nn/read.hpp>

#include "trainer.hpp"

namespace examples {

namespace detail {

inline const std::array totals_fields = {&Totals::images, &Totals::loss, &Totals::correct,
                                         &Totals::iterations, &Totals::residual};

}  // namespace detail

/// Writes everything that the rest of a training depends on, at once or not at all. The weights
/// keep their PyTorch names, so that the file can be used as they are as well; beside them are
/// "adam.first.NAME" and "adam.second.NAME", "steps", and "epoch", the sums of the unfinished one.
template <deq::Backend B>
void save_checkpoint(const std::filesystem::path& path, const Options& options,
                     const Trainer<B>& trainer, const Totals& epoch) {
  deq::SafetensorsWriter writer;
  trainer.model().save(writer);
  const deq::Parameters<B>& parameters = trainer.model().parameters();
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto moment = [&](const char* prefix, const deq::Tensor<B>& t) {
      writer.add<float>(prefix + parameters[i].name, t.shape(), t.to_host());
    };
    moment("adam.first.", trainer.adam().first_moment(static_cast<deq::Index>(i)));
    moment("adam.second.", trainer.adam().second_moment(static_cast<deq::Index>(i)));
  }
  const std::int64_t steps = trainer.steps();
  writer.add<std::int64_t>("steps", {}, std::span(&steps, 1));
  std::vector<double> sums;
  for (const auto field : detail::totals_fields) sums.push_back(epoch.*field);
  writer.add<double>("epoch", {static_cast<deq::Index>(sums.size())}, sums);
  for (const auto& [name, value] : options.settings()) writer.metadata(name, value);
  writer.write(path);
}

/// Continues from a file of save_checkpoint: returns the sums of the unfinished epoch. Throws
/// deq::IoError or deq::FormatError if it cannot be read or is none, deq::InvalidArgument if it was
/// made with other options; the trainer is then as before.
template <deq::Backend B>
Totals load_checkpoint(const std::filesystem::path& path, const Options& options,
                       Trainer<B>& trainer) {
  const auto file = deq::SafetensorsFile::open(path);
  for (const auto& [name, value] : options.settings()) {
    const auto found = file.metadata().find(name);
    deq::require<deq::FormatError>(found != file.metadata().end(), path.string(),
                                   ": not a checkpoint of this program, it does not say ", name);
    deq::require(found->second == value, path.string(), ": was made with ", name, ' ',
                 found->second, ", not with ", name, ' ', value);
  }
  std::vector<deq::Tensor<B>> first, second;
  for (const deq::Parameter<B>& p : trainer.model().parameters()) {
    first.push_back(deq::read_tensor<B>(file, "adam.first." + p.name, p.value.shape()));
    second.push_back(deq::read_tensor<B>(file, "adam.second." + p.name, p.value.shape()));
  }
  const std::int64_t steps = deq::read_count(file, "steps");
  const auto sums = deq::read_tensor<deq::Cpu<double>>(
      file, "epoch", {static_cast<deq::Index>(detail::totals_fields.size())});
  trainer.model().load(file);
  trainer.adam().restore(steps, first, second);
  Totals epoch;
  for (std::size_t i = 0; i < detail::totals_fields.size(); ++i)
    epoch.*detail::totals_fields[i] = sums.data()[i];
  return epoch;
}

}  // namespace examples
