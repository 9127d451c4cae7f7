// SPDX-License-Identifier: MIT
// Does this library compute what the original MDEQ computes? Reads a directory of golden numbers
// (the format of tests/data/README.md), prints every comparison with its error and its tolerance,
// and exits with 1 if one fails.
//
//     check_reference DIR              compare
//     check_reference --compact OUT DIR   write DIR again, large tensors replaced by sketches

#include <cstring>
#include <iostream>

#ifdef DEQ_REFERENCE_CUDA
#include <deq/backend/cuda/kernels.cuh>
#endif

#include "reference/large.hpp"
#include "reference/tiny.hpp"

namespace {

#ifdef DEQ_REFERENCE_CUDA
template <class S>
using ReferenceBackend = deq::Cuda<S>;
#else
template <class S>
using ReferenceBackend = deq::Cpu<S>;
#endif

using reference::Comparison;
using reference::Problem;
using reference::Stored;
namespace fs = std::filesystem;

/// The file if it is part of this set.
std::optional<Stored> open(const fs::path& directory, const std::string& name) {
  const fs::path path = directory / (name + ".safetensors");
  if (!fs::exists(path)) return std::nullopt;
  return Stored(path);
}

template <class B>
void check_case(const fs::path& directory, const std::string& name, bool dropout,
                deq::BatchNormMode mode, Comparison& out) {
  const auto layer = open(directory, name + ".layer"), solve = open(directory, name + ".solve"),
             grads = open(directory, name + ".grads"), jacobian = open(directory, name + ".jac"),
             norms = open(directory, name + ".bn_after");
  if (!layer && !solve && !grads && !jacobian && !norms) return;
  const std::string network = name.substr(0, name.find('.'));
  Problem<B> p(directory, network, dropout, mode);
  p.bind_layer();
  if (layer) {
    out.section(name + ": layer");
    reference::check_layer(p, *layer, out);
  }
  if (solve) {
    out.section(name + ": solves");
    using deq::WhenFull;
    const auto z = reference::check_solve(p, *solve, out, "inf", 18, WhenFull::discard_oldest);
    reference::check_solve(p, *solve, out, "m5", 5, WhenFull::discard_oldest);
    reference::check_solve(p, *solve, out, "m5_dropfirst", 5, WhenFull::discard_oldest_first);
    reference::check_stopped_solves(p, *solve, out);
    out.section(name + ": gradients");
    reference::check_gradients(p, *solve, grads ? &*grads : nullptr, out);
    reference::check_evaluation(p, *solve, out);
    p.bind_layer();
    reference::check_backward_trace(p, *solve, out, z);
    if (jacobian) {
      out.section(name + ": products with the Jacobian");
      reference::check_jacobian(p, *jacobian, out, z);
    }
  }
  if (norms) {
    out.section(name + ": running statistics");
    reference::check_batch_norm(p, *norms, out);
  }
}

/// The main case in single precision; its gradients against those in double.
template <class B>
void check_single(const fs::path& directory, const std::string& name, Comparison& out) {
  const auto stored = open(directory, name + ".float32"), grads = open(directory, name + ".grads");
  if (!stored) return;
  out.section(name + ": single precision");
  const std::string network = name.substr(0, name.find('.'));
  Problem<B> p(directory, network, false, deq::BatchNormMode::train);
  Problem<deq::Cpu<double>> in_double(directory, network, false, deq::BatchNormMode::train);
  p.bind_layer();
  reference::check_layer(p, *stored, out);
  using deq::WhenFull;
  reference::check_solve(p, *stored, out, "inf", 18, WhenFull::discard_oldest);
  reference::check_solve(p, *stored, out, "m5", 5, WhenFull::discard_oldest);
  reference::check_gradients(p, *stored, grads ? &*grads : nullptr, out, &in_double);
}

template <template <class> class Backend>
int compare(const fs::path& directory) {
  deq::require<deq::IoError>(fs::is_directory(directory), directory.string(), " is no directory");
  Comparison out;
  using deq::BatchNormMode;
  check_case<Backend<double>>(directory, "tiny.nodrop_bntrain", false, BatchNormMode::train, out);
  check_case<Backend<double>>(directory, "tiny.drop_bntrain", true, BatchNormMode::train, out);
  check_case<Backend<double>>(directory, "tiny.nodrop_bneval", false, BatchNormMode::evaluate, out);
  check_case<Backend<double>>(directory, "tiny_hard.nodrop_bntrain", false, BatchNormMode::train,
                              out);
  check_single<Backend<float>>(directory, "tiny.nodrop_bntrain", out);
  if (const auto large = open(directory, "large.float32")) {
    // The set's letter names the seed of the formula.
    const auto& metadata = large->file().metadata();
    const auto set = metadata.find("set");
    const std::uint64_t seed =
        101 + static_cast<std::uint64_t>(set != metadata.end() ? set->second.at(0) - 'A' : 0);
    out.section("large: single precision");
    reference::check_large<Backend<float>>(directory, seed, out);
    out.section("large: double precision");
    reference::check_large<Backend<double>>(directory, seed, out);
  }
  std::printf("\n%d passed, %d failed\n", out.passed(), out.failed());
  return out.failed() == 0 && out.passed() > 0 ? 0 : 1;
}

/// What the comparisons start from, and so must stay whole.
bool is_input(const std::string& file, const std::string& tensor) {
  return file.find("weights") != std::string::npos || tensor == "image" || tensor == "label" ||
         tensor == "z" || tensor == "cotangent" || tensor == "probe" || tensor.starts_with("mask.");
}

void compact(const fs::path& from, const fs::path& to) {
  constexpr deq::Index largest_whole = 1024;
  fs::create_directories(to);
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.path().extension() == ".csv")
      fs::copy_file(entry.path(), to / entry.path().filename(),
                    fs::copy_options::overwrite_existing);
    if (entry.path().extension() != ".safetensors") continue;
    const Stored stored(entry.path());
    const std::string file = entry.path().filename().string();
    deq::SafetensorsWriter writer;
    for (const auto& [key, value] : stored.file().metadata()) writer.metadata(key, value);
    for (const std::string& name : stored.names()) {
      const bool whole = is_input(file, name) || stored.file().shape(name).size() <= largest_whole;
      if (file == "tiny.inputs.safetensors" && !is_input(file, name)) continue;
      if (!whole) {
        const auto values = reference::sketch(name, stored.read(name));
        const std::string sketch_name = name + reference::sketch_suffix;
        const deq::Shape shape{static_cast<deq::Index>(values.size())};
        if (stored.rounded(name))
          writer.add<float>(sketch_name, shape, std::vector<float>(values.begin(), values.end()));
        else
          writer.add<double>(sketch_name, shape, values);
      } else if (stored.file().dtype(name) == deq::Dtype::f32) {
        writer.add<float>(name, stored.file().shape(name), stored.file().read<float>(name));
      } else if (stored.file().dtype(name) == deq::Dtype::i64) {
        writer.add<std::int64_t>(name, stored.file().shape(name),
                                 stored.file().read<std::int64_t>(name));
      } else {
        writer.add<double>(name, stored.file().shape(name), stored.read(name));
      }
    }
    writer.write(to / file);
  }
}

}  // namespace

int main(int argc, char** argv) {
  try {
#ifdef DEQ_REFERENCE_CUDA
    if (!deq::cuda::available()) {
      std::puts("skipped: there is no GPU");
      return 77;
    }
#endif
    if (argc == 2) return compare<ReferenceBackend>(argv[1]);
    if (argc == 4 && std::strcmp(argv[1], "--compact") == 0) {
      compact(argv[3], argv[2]);
      return 0;
    }
    std::cerr << "usage: check_reference DIR\n       check_reference --compact OUT DIR\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "check_reference: " << error.what() << '\n';
    return 1;
  }
}
