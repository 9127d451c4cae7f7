// SPDX-License-Identifier: MIT
// How do I train a multiscale deep equilibrium model, and which gradient method should I take?
//
//     train_mdeq --gradient gdeq                        one training, resumable
//     train_mdeq --compare implicit,jfb,npg,gdeq        the methods side by side
//     train_mdeq --benchmark                            only their speed
//     train_mdeq --device cuda --precision bf16 ...     any of them on a GPU

#include <deq/backend/cpu/kernels.hpp>
#include <deq/core/parallel.hpp>

#include "train_mdeq/program.hpp"

int main(int argc, char** argv) {
  using namespace examples;
  return run_program("train_mdeq", [&] {
    const std::optional<Options> options = read_options(argc, argv);
    if (!options) return 0;
    deq::set_num_threads(options->threads);
#ifdef DEQ_EXAMPLE_CUDA
    if (options->device == "cuda") return run_on_cuda(*options);
#else
    deq::require<UsageError>(options->device == "cpu",
                             "--device cuda: this program was built without DEQ_WITH_CUDA");
#endif
    return run_on<deq::Cpu<float>>(*options);
  });
}
