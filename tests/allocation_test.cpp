// SPDX-License-Identifier: MIT
// In a steady state nothing asks the system for memory: neither the pool nor operator new
#include <atomic>
#include <cstdlib>
#include <new>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>

#include <deq/deq.hpp>
#include <deq/model/mdeq_classifier.hpp>

#include "support/tensors.hpp"

namespace {
std::atomic<long> requests{0};

void* request(std::size_t bytes, std::size_t alignment) {
  ++requests;
  if (void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment))
    return p;
  throw std::bad_alloc();
}
// Not inline: g++ would see free() meet `new`, and warn.
[[gnu::noinline]] void give_back(void* p) { std::free(p); }
}  // namespace

void* operator new(std::size_t bytes) { return request(bytes, alignof(std::max_align_t)); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return request(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }

using namespace deq_test;

namespace {

/// Of oneDNN's convolutions, which are of float, every call asks for memory; of ours none does.
using S = std::conditional_t<deq::detail::has_onednn<float>, double, float>;
using F = deq::Cpu<S>;
using deq::MdeqClassifier;
using deq::MdeqConfig;

const MdeqConfig config{
    .channels = {8, 16}, .head_channels = {4, 8}, .final_channels = 24, .image_size = 16};
const deq::Broyden<deq::StepsOnly> solver{
    .stopping = {.max_iterations = 4, .relative_tolerance = 0, .stall_window = 0}, .memory = 4};

/// How often work() asks for memory once it has been done a few times: on one thread for certain;
/// on several the pool may meet a new coincidence now and then, so there it is the best of many.
template <class Work>
long steady_requests(int threads, Work work) {
  const int before = deq::num_threads();
  deq::set_num_threads(threads);
  for (int k = 0; k < 4; ++k) work();
  long least = -1;
  for (int k = 0; k < (threads == 1 ? 1 : 20); ++k) {
    const long start = requests;
    work();
    const long count = requests - start;
    if (least < 0 || count < least) least = count;
  }
  deq::set_num_threads(before);
  return least;
}

template <class Policy>
void check_training_and_inference(Policy policy) {
  const Index n = 6;
  deq::Mdeq<F> model(config, 1);
  const auto images = random_tensor<S>({n, 3, 16, 16}, 1);
  const std::vector<Index> labels(n, 3);
  std::vector<TensorOf<S>> masks;
  for (const Index channels : config.channels)
    masks.push_back(random_tensor<S>({n, channels, 1, 1}, 2, 0.5, 1.5));
  MdeqClassifier<F, deq::Broyden<deq::StepsOnly>, Policy> classifier(model, solver, policy);
  for (const int threads : {1, 2}) {
    CAPTURE(threads);
    CHECK(steady_requests(threads, [&] { classifier.train(images, labels, masks); }) == 0);
    CHECK(steady_requests(threads, [&] { classifier.logits(images); }) == 0);
  }
}

}  // namespace

TEST_CASE("requests are counted") {
  CHECK(steady_requests(1, [] { delete new int; }) == 1);
}

TEST_CASE("training steps and inference of MDEQ ask for no memory in a steady state") {
  check_training_and_inference(deq::Gdeq{});
  check_training_and_inference(deq::Implicit<deq::Broyden<deq::StepsOnly>>{solver});
  check_training_and_inference(deq::Jfb{});
}

TEST_CASE("nor do a solve of a dense layer and its gradient") {
  using deq::inputs;
  using deq::params;
  const auto f = [](const auto& z, const auto& x, const auto& w) { return tanh(linear(z, w) + x); };
  auto layer = deq::equilibrium<deq::Broyden<>, deq::Gdeq>(f);
  const auto x = random_tensor<float>({8, 32}, 1), w = random_tensor<float>({32, 32}, 2, -0.1, 0.1);
  const TensorOf<float> zero({8, 32}, 0.F), h({8, 32}, 1.F);
  auto solution = layer.solve(zero, inputs(x), params(w));
  auto gradients = layer.gradient(solution, h);
  for (const int threads : {1, 2}) {
    CAPTURE(threads);
    CHECK(steady_requests(threads, [&] {
            layer.solve(zero, inputs(x), params(w), solution);
            layer.gradient(solution, h, gradients);
          }) == 0);
  }
}
