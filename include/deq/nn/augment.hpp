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

#include <deq/backend/array.hpp>
#include <deq/backend/concept.hpp>
#include <deq/backend/geometry.hpp>
#include <deq/core/error.hpp>
#include <deq/core/host_pool.hpp>
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

/// Bytes to normalised numbers, (byte / 255 - mean) / stddev per channel: torchvision's RandomCrop
/// (padding with black, before the normalisation), RandomHorizontalFlip, ToTensor, Normalize. The
/// bytes of the data set and the numbers of a batch are in the memory of backend B.
template <Backend B>
class ImageTransform {
  using S = typename B::Scalar;

 public:
  explicit ImageTransform(const ImageOptions& options = {}) : options_(options) {
    require(options.height >= 1 && options.width >= 1, "ImageTransform: the image size must be ",
            "positive, got ", options.height, " x ", options.width);
    require(options.padding >= 0, "ImageTransform: padding must be >= 0, got ", options.padding);
    std::vector<S> table;
    for (std::size_t c = 0; c < ImageOptions::channels; ++c) {
      const double mean = options.mean[c], stddev = options.stddev[c];
      require(stddev > 0, "ImageTransform: stddev of channel ", c, " must be > 0, got ", stddev);
      for (int byte = 0; byte < 256; ++byte)
        table.push_back(static_cast<S>((static_cast<double>(byte) / 255 - mean) / stddev));
    }
    table_.resize(static_cast<Index>(table.size()));
    B::upload_bytes(table_.data(), table.data(), table.size() * sizeof(S));
  }

  /// Numbers (and bytes) of one image.
  Index image_size() const { return geometry().size(); }

  /// The cut of image `sample` of the data set in `epoch`, top and left in {0, ..., 2 padding}: a
  /// pure function of the arguments.
  ImageCut draw(std::uint64_t seed, std::uint32_t epoch, std::uint32_t sample) const {
    Random random(seed, Purpose::augmentation, epoch, sample);
    const auto offsets = static_cast<std::uint32_t>(2 * options_.padding + 1);
    ImageCut cut{.image = sample};
    cut.top = random.below(offsets);
    cut.left = random.below(offsets);
    cut.flip = options_.flip && random.below(2) == 1;
    return cut;
  }

  /// out: NCHW, image j of the batch is image samples[j] of the data set, as it is.
  void plain(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
             std::span<S> out) const {
    cut(images, samples, out, [this](std::uint32_t sample) {
      return ImageCut{sample, options_.padding, options_.padding, false};
    });
  }

  /// The same with a random crop and flip, see draw(). No result depends on the number of threads
  /// or on which samples share a batch.
  void augmented(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
                 std::uint64_t seed, std::uint32_t epoch, std::span<S> out) const {
    cut(images, samples, out,
        [=, this](std::uint32_t sample) { return draw(seed, epoch, sample); });
  }

 private:
  ImageGeometry geometry() const {
    return {ImageOptions::channels, options_.height, options_.width, options_.padding};
  }

  template <class CutOf>
  void cut(std::span<const std::uint8_t> images, std::span<const std::uint32_t> samples,
           std::span<S> out, CutOf cut_of) const {
    const auto size = static_cast<std::size_t>(image_size());
    require<ShapeError>(images.size() % size == 0, "ImageTransform: ", images.size(),
                        " bytes are not a whole number of images of ", size, " bytes");
    require<ShapeError>(out.size() == samples.size() * size, "ImageTransform: ", samples.size(),
                        " images of ", size, " numbers need ", samples.size() * size,
                        " places, got ", out.size());
    const std::size_t count = images.size() / size;
    PoolVector<ImageCut> cuts;
    for (const std::uint32_t sample : samples) {
      require(sample < count, "ImageTransform: there is no image ", sample, ", the data set has ",
              count);
      cuts.push_back(cut_of(sample));
    }
    const Array<B, ImageCut> there(static_cast<Index>(cuts.size()));
    B::upload_bytes(there.data(), cuts.data(), cuts.size() * sizeof(ImageCut));
    cut_images(B{}, geometry(), there.size(), there.data(), images.data(),
               static_cast<const S*>(table_.data()), out.data());
  }

  ImageOptions options_;
  Array<B> table_;  ///< [channel][byte]
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
