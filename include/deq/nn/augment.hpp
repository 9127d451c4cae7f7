// SPDX-License-Identifier: MIT
// From the bytes of a data set to a batch that a network reads, and in which order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/core/parallel.hpp>
#include <deq/core/random.hpp>
#include <deq/core/types.hpp>

namespace deq {

/// Size, normalisation and augmentation of planar RGB images (all red bytes, then all green, then
/// all blue, row by row). The defaults are those of CIFAR-10.
struct ImageOptions {
  static constexpr Index channels = 3;

  Index height = 32, width = 32;
  std::array<double, channels> mean = {0.4914, 0.4822, 0.4465};    ///< of bytes / 255
  std::array<double, channels> stddev = {0.2023, 0.1994, 0.2010};  ///< of bytes / 255
  Index padding = 4;  ///< random crop: zero bytes around the image, 0 for no crop
  bool flip = true;   ///< mirror an image with probability 1/2
};

/// Where one augmented image is cut from the padded one.
struct ImageCrop {
  Index top = 0, left = 0;  ///< in {0, ..., 2 padding}; `padding` is the image itself
  bool flip = false;        ///< then mirrored left to right
};

/// Bytes to normalised numbers, (byte / 255 - mean) / stddev per channel: torchvision's RandomCrop
/// (padding with black, before the normalisation), RandomHorizontalFlip, ToTensor, Normalize.
template <class S>
class ImageTransform {
 public:
  explicit ImageTransform(const ImageOptions& options = {}) : options_(options) {
    require(options.height >= 1 && options.width >= 1, "ImageTransform: the image size must be ",
            "positive, got ", options.height, " x ", options.width);
    require(options.padding >= 0, "ImageTransform: padding must be >= 0, got ", options.padding);
    for (std::size_t c = 0; c < table_.size(); ++c) {
      const double mean = options.mean[c], stddev = options.stddev[c];
      require(stddev > 0, "ImageTransform: stddev of channel ", c, " must be > 0, got ", stddev);
      for (std::size_t byte = 0; byte < 256; ++byte)
        table_[c][byte] = static_cast<S>((static_cast<double>(byte) / 255 - mean) / stddev);
    }
  }

  /// Numbers (and bytes) of one image.
  Index image_size() const { return ImageOptions::channels * options_.height * options_.width; }

  /// The crop of `sample` (its number in the data set) in `epoch`: a pure function of the
  /// arguments.
  ImageCrop draw(std::uint64_t seed, std::uint32_t epoch, std::uint32_t sample) const {
    Random random(seed, Purpose::augmentation, epoch, sample);
    const auto offsets = static_cast<std::uint32_t>(2 * options_.padding + 1);
    ImageCrop crop;
    crop.top = random.below(offsets);
    crop.left = random.below(offsets);
    crop.flip = options_.flip && random.below(2) == 1;
    return crop;
  }

  /// out: NCHW, image j of the batch is image samples[j] of the data set, as it is.
  void plain(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
             std::span<S> out) const {
    fill(images, samples, out, [this](std::uint32_t) {
      return ImageCrop{options_.padding, options_.padding, false};
    });
  }

  /// The same with a random crop and flip, see draw(). No result depends on the number of threads
  /// or on which samples share a batch.
  void augmented(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
                 std::uint64_t seed, std::uint32_t epoch, std::span<S> out) const {
    fill(images, samples, out,
         [=, this](std::uint32_t sample) { return draw(seed, epoch, sample); });
  }

 private:
  template <class CropOf>
  void fill(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
            std::span<S> out, CropOf crop_of) const {
    const auto size = static_cast<std::size_t>(image_size());
    require<ShapeError>(images.size() % size == 0, "ImageTransform: ", images.size(),
                        " bytes are not a whole number of images of ", size, " bytes");
    require<ShapeError>(out.size() == samples.size() * size, "ImageTransform: ", samples.size(),
                        " images of ", size, " numbers need ", samples.size() * size,
                        " places, got ", out.size());
    const std::size_t count = images.size() / size;
    for (const std::uint32_t sample : samples)
      require(sample < count, "ImageTransform: there is no image ", sample, ", the data set has ",
              count);
    const auto batch = static_cast<Index>(samples.size());
    parallel_for(
        batch,
        [&](Index j) {
          const auto position = static_cast<std::size_t>(j);
          const std::uint32_t sample = samples[position];
          cut(images.data() + sample * size, crop_of(sample), out.data() + position * size);
        },
        batch * image_size() < 32768);
  }

  void cut(const std::uint8_t* image, const ImageCrop& crop, S* out) const {
    const Index height = options_.height, width = options_.width;
    for (const std::array<S, 256>& normalised : table_) {
      for (Index y = 0; y < height; ++y) {
        const Index row = y + crop.top - options_.padding;
        const bool row_inside = row >= 0 && row < height;
        for (Index x = 0; x < width; ++x) {
          const Index column = (crop.flip ? width - 1 - x : x) + crop.left - options_.padding;
          const bool inside = row_inside && column >= 0 && column < width;
          *out++ = normalised[inside ? image[row * width + column] : 0];
        }
      }
      image += height * width;
    }
  }

  ImageOptions options_;
  std::array<std::array<S, 256>, ImageOptions::channels> table_;  ///< [channel][byte]
};

/// The numbers 0, ..., count - 1 in the order of `epoch`: a uniformly random permutation (Fisher
/// and Yates), a pure function of the arguments.
inline std::vector<std::uint32_t> shuffled_indices(std::uint32_t count, std::uint64_t seed,
                                                   std::uint32_t epoch) {
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  Random random(seed, Purpose::shuffle, epoch);
  for (std::uint32_t left = count; left > 1; --left)
    std::swap(order[left - 1], order[random.below(left)]);
  return order;
}

}  // namespace deq
