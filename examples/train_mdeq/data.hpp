// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <deq/backend/array.hpp>
#include <deq/io/cifar10.hpp>
#include <deq/nn/augment.hpp>
#include <deq/nn/dropout.hpp>

#include "network.hpp"

namespace examples {

/// Square colour images as bytes, planar, in the memory of backend B, with their labels.
template <deq::Backend B>
struct Images {
  deq::Array<B, std::uint8_t> pixels;
  std::vector<std::uint8_t> labels;

  deq::Index size() const { return static_cast<deq::Index>(labels.size()); }
  std::span<const std::uint8_t> bytes() const {
    return {pixels.data(), static_cast<std::size_t>(pixels.size())};
  }
};

template <deq::Backend B>
struct Dataset {
  std::string name;  ///< stands in every output, so that nobody takes generated data for CIFAR-10
  deq::Index side;   ///< height and width of an image
  Images<B> train, test;
};

namespace detail {

/// The first `count` images (0: all) at `side` x `side`, each pixel the mean of a square.
template <deq::Backend B>
Images<B> shrink(const deq::ImageSet& set, deq::Index count, deq::Index side, const char* option) {
  deq::require(count <= set.size(), option, ": there are ", set.size(), " images, not ", count);
  const deq::Index images = count ? count : set.size();
  const deq::Index ratio = deq::ImageSet::height / side, width = deq::ImageSet::width;
  Images<B> out;
  std::vector<std::uint8_t> pixels;
  out.labels.assign(set.labels.begin(), set.labels.begin() + images);
  pixels.reserve(static_cast<std::size_t>(images * deq::ImageSet::channels * side * side));
  for (deq::Index plane = 0; plane < images * deq::ImageSet::channels; ++plane)
    for (deq::Index y = 0; y < side; ++y)
      for (deq::Index x = 0; x < side; ++x) {
        deq::Index sum = ratio * ratio / 2;  // rounds to nearest
        for (deq::Index i = 0; i < ratio * ratio; ++i)
          sum += set.pixels[static_cast<std::size_t>(
              plane * width * width + (y * ratio + i / ratio) * width + x * ratio + i % ratio)];
        pixels.push_back(static_cast<std::uint8_t>(sum / (ratio * ratio)));
      }
  out.pixels.resize(static_cast<deq::Index>(pixels.size()));
  B::upload_bytes(out.pixels.data(), pixels.data(), pixels.size());
  return out;
}

}  // namespace detail

/// CIFAR-10, or generated images, at the model's resolution.
template <deq::Backend B>
Dataset<B> load_dataset(const Options& options) {
  const deq::Index side = model_config(options).image_size;
  deq::Cifar10 source;
  if (options.synthetic) {
    const auto count = [](deq::Index asked, deq::Index all) { return asked ? asked : all; };
    source.train = deq::synthetic_images(count(options.train_samples, 50000), 1);
    source.test = deq::synthetic_images(count(options.test_samples, 10000), 2);
  } else {
    source = deq::load_cifar10(options.data);
  }
  Dataset<B> data;
  data.side = side;
  data.train = detail::shrink<B>(source.train, options.train_samples, side, "--train-samples");
  data.test = detail::shrink<B>(source.test, options.test_samples, side, "--test-samples");
  data.name = deq::message(options.synthetic ? "GENERATED IMAGES (not CIFAR-10)" : "CIFAR-10", ", ",
                           data.train.size(), " for training, ", data.test.size(), " for testing, ",
                           side, " x ", side);
  return data;
}

/// What a network reads in one step.
template <deq::Backend B>
struct Batch {
  deq::Tensor<B> images;           ///< (N, 3, side, side), normalised
  std::vector<deq::Index> labels;  ///< N
  std::vector<deq::Index> ids;     ///< N, numbers of the samples in the data set

  deq::Index size() const { return static_cast<deq::Index>(labels.size()); }
};

/// Cuts a data set into batches. Each is a pure function of the seed and its position, so that a
/// training resumes anywhere without a state of its own.
template <deq::Backend B>
class Batches {
 public:
  Batches(const Options& options, const Dataset<B>& data)
      : data_(data),
        transform_({.height = data.side, .width = data.side, .padding = data.side / 8}),
        size_(options.recipe.batch),
        augment_(options.recipe.augment == "on"),
        seed_(options.seed) {}

  std::int64_t steps_per_epoch() const { return (data_.train.size() + size_ - 1) / size_; }

  /// The batch of a training step, shuffled anew in every epoch; an epoch's last may be smaller.
  Batch<B> training(std::int64_t step) {
    const auto epoch = static_cast<std::uint32_t>(step / steps_per_epoch());
    if (order_.empty() || epoch != order_epoch_)
      order_ = deq::shuffled_indices(static_cast<std::uint32_t>(data_.train.size()), seed_, epoch);
    order_epoch_ = epoch;
    const auto first = static_cast<std::size_t>(step % steps_per_epoch() * size_);
    const auto count = std::min(static_cast<std::size_t>(size_), order_.size() - first);
    const std::span<const std::uint32_t> samples(order_.data() + first, count);
    Batch<B> batch = empty(data_.train, samples);
    if (augment_)
      transform_.augmented(data_.train.bytes(), samples, seed_, epoch, numbers(batch));
    else
      transform_.plain(data_.train.bytes(), samples, numbers(batch));
    return batch;
  }

  /// Test images from number `first` on, as many as fit into a batch.
  Batch<B> test(deq::Index first) const {
    const auto count = static_cast<std::size_t>(std::min(size_, data_.test.size() - first));
    std::vector<std::uint32_t> samples(count);
    std::iota(samples.begin(), samples.end(), static_cast<std::uint32_t>(first));
    Batch<B> batch = empty(data_.test, samples);
    transform_.plain(data_.test.bytes(), samples, numbers(batch));
    return batch;
  }
  deq::Index test_size() const { return data_.test.size(); }

 private:
  Batch<B> empty(const Images<B>& images, std::span<const std::uint32_t> samples) const {
    Batch<B> batch{
        deq::Tensor<B>({static_cast<deq::Index>(samples.size()), 3, data_.side, data_.side}),
        {},
        {samples.begin(), samples.end()}};
    for (const std::uint32_t sample : samples) batch.labels.push_back(images.labels[sample]);
    return batch;
  }
  static std::span<float> numbers(Batch<B>& batch) {
    return {batch.images.data(), static_cast<std::size_t>(batch.images.size())};
  }

  const Dataset<B>& data_;
  deq::ImageTransform<B> transform_;
  deq::Index size_;
  bool augment_;
  std::uint64_t seed_;
  std::vector<std::uint32_t> order_;
  std::uint32_t order_epoch_ = 0;
};

/// The dropout masks of a training step, one a branch; none without dropout.
template <deq::Backend B>
std::vector<deq::Tensor<B>> dropout_masks(const deq::MdeqConfig& config, std::uint64_t seed,
                                          std::int64_t step, const Batch<B>& batch) {
  std::vector<deq::Tensor<B>> masks;
  if (config.dropout == 0) return masks;
  for (deq::Index i = 0; i < config.branches(); ++i)
    masks.push_back(deq::dropout_mask<B>(
        {batch.size(), config.channels_of(i), 1, 1}, config.dropout,
        {seed, static_cast<std::uint32_t>(step), static_cast<std::uint32_t>(i)}, batch.ids));
  return masks;
}

}  // namespace examples
