// SPDX-License-Identifier: MIT
// CIFAR-10 in its binary version (Krizhevsky, "Learning Multiple Layers of Features from Tiny
// Images", 2009): a file is a sequence of records, each a label byte and 3072 pixels, the red, the
// green and the blue plane of a 32 x 32 image, row by row.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <deq/core/error.hpp>
#include <deq/core/parallel.hpp>
#include <deq/core/random.hpp>
#include <deq/core/types.hpp>
#include <deq/io/read_file.hpp>

namespace deq {

/// The meaning of the labels of CIFAR-10.
inline constexpr std::array<std::string_view, 10> cifar10_class_names{
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};

/// N colour images of 32 x 32 pixels with their labels.
struct ImageSet {
  static constexpr Index channels = 3;
  static constexpr Index height = 32;
  static constexpr Index width = 32;
  static constexpr Index image_size = channels * height * width;  ///< 3072
  static constexpr Index classes = 10;

  /// N x 3 x 32 x 32, row-major: image, then channel (red, green, blue), row, column. In 0...255.
  std::vector<std::uint8_t> pixels;
  /// N, in 0...9.
  std::vector<std::uint8_t> labels;

  Index size() const { return static_cast<Index>(labels.size()); }
  /// The pixels of image i: 3 x 32 x 32.
  std::span<const std::uint8_t> image(Index i) const {
    return std::span(pixels).subspan(static_cast<std::size_t>(i * image_size),
                                     static_cast<std::size_t>(image_size));
  }
};

/// The 50000 images for training and the 10000 for testing.
struct Cifar10 {
  ImageSet train;
  ImageSet test;
};

namespace detail {

inline constexpr std::size_t cifar10_record_size = 1 + ImageSet::image_size;
inline constexpr std::size_t cifar10_batch_records = 10000;

/// Appends the records of a file to `images`.
inline void append_cifar10_batch(const std::filesystem::path& path, ImageSet& images) {
  const std::uint64_t size = checked_file_size(path);
  const std::uint64_t rest = size % cifar10_record_size;
  require<FormatError>(size > 0 && rest == 0, path.string(), ": ", size,
                       " bytes, expected a multiple of ", cifar10_record_size,
                       " (a CIFAR-10 batch has ", cifar10_record_size * cifar10_batch_records,
                       "); is the file truncated?");
  std::vector<std::uint8_t> records(static_cast<std::size_t>(size));
  read_bytes(path, 0, std::as_writable_bytes(std::span(records)));

  for (std::size_t i = 0; i < records.size() / cifar10_record_size; ++i) {
    const auto record = std::span(records).subspan(i * cifar10_record_size, cifar10_record_size);
    require<FormatError>(record[0] < ImageSet::classes, path.string(), ": record ", i,
                         " has label ", int{record[0]}, ", expected 0...", ImageSet::classes - 1);
    images.labels.push_back(record[0]);
    images.pixels.insert(images.pixels.end(), record.begin() + 1, record.end());
  }
}

/// append_cifar10_batch for a file of the data set, which has a known number of records.
inline void append_full_cifar10_batch(const std::filesystem::path& path, ImageSet& images) {
  std::error_code unreadable;
  require<IoError>(std::filesystem::exists(path, unreadable), "cannot find ", path.string(),
                   "; to get CIFAR-10 run: bash examples/get_cifar10.sh ",
                   path.parent_path().string());
  constexpr std::size_t expected = cifar10_record_size * cifar10_batch_records;
  const std::uint64_t size = checked_file_size(path);
  require<FormatError>(size == expected, path.string(), ": ", size, " bytes, expected ", expected,
                       (size < expected ? "; is the file truncated?" : ""));
  append_cifar10_batch(path, images);
}

}  // namespace detail

/// Reads one file of records (any number of them, at least one). Throws IoError if it cannot be
/// read; FormatError if its size is not a multiple of 3073 bytes or a label is above 9.
inline ImageSet load_cifar10_batch(const std::filesystem::path& path) {
  ImageSet images;
  detail::append_cifar10_batch(path, images);
  return images;
}

/// Reads the whole data set, 184 MB, from data_batch_1.bin ... data_batch_5.bin and test_batch.bin
/// in `directory` or in the cifar-10-batches-bin below it, as the official archive unpacks.
/// Throws IoError if a file is missing, FormatError if one does not have its 10000 records.
inline Cifar10 load_cifar10(const std::filesystem::path& directory) {
  const std::filesystem::path unpacked = directory / "cifar-10-batches-bin";
  std::error_code unreadable;
  const bool is_unpacked = std::filesystem::exists(unpacked, unreadable);
  const std::filesystem::path& files = is_unpacked ? unpacked : directory;
  const auto batch = [&](int i) { return files / message("data_batch_", i, ".bin"); };

  constexpr auto image_size = static_cast<std::size_t>(ImageSet::image_size);
  Cifar10 data;
  data.train.pixels.reserve(5 * detail::cifar10_batch_records * image_size);
  for (int i = 1; i <= 5; ++i) detail::append_full_cifar10_batch(batch(i), data.train);
  data.test.pixels.reserve(detail::cifar10_batch_records * image_size);
  detail::append_full_cifar10_batch(files / "test_batch.bin", data.test);
  return data;
}

namespace detail {

/// A colour with channels in 0...255, from a hue in [0, 6) (0 red, 2 green, 4 blue) at full
/// saturation: the piecewise linear wheel.
inline std::array<double, 3> hue_to_rgb(double hue) {
  const auto channel = [&](double centre) {
    double distance = std::abs(hue - centre);
    distance = std::min(distance, 6 - distance);
    return 255 * std::clamp(2 - distance, 0.0, 1.0);
  };
  return {channel(0), channel(2), channel(4)};
}

/// Whether the point (x, y), in units of the shape's half size from its centre, is inside shape
/// 0 disc, 1 ring, 2 square, 3 triangle, 4 cross.
inline bool inside_shape(int shape, double x, double y) {
  const double square_radius = x * x + y * y;
  const double ax = std::abs(x);
  const double ay = std::abs(y);
  switch (shape) {
    case 0: return square_radius <= 1;
    case 1: return square_radius <= 1 && square_radius >= 0.3;
    case 2: return std::max(ax, ay) <= 0.85;
    case 3: return ay <= 1 && 2 * ax <= 1 + y;
    default: return std::max(ax, ay) <= 1 && std::min(ax, ay) <= 0.3;
  }
}

/// Draws one synthetic image of class `label` into 3 x 32 x 32 `pixels`.
inline void draw_synthetic_image(int label, double noise, Random random,
                                 std::span<std::uint8_t> pixels) {
  const int shape = label % 5;
  const bool stripes_are_rows = label >= 5;
  // The hues of neighbouring classes overlap, so that colour alone does not tell the class.
  double hue = 0.6 * label + random.uniform(-0.9, 0.9);
  hue += hue < 0 ? 6 : hue >= 6 ? -6 : 0;
  const std::array<double, 3> colour = hue_to_rgb(hue);
  const double brightness = random.uniform(0.6, 1.0);
  const double radius = random.uniform(7, 12);
  const double centre_x = random.uniform(radius, ImageSet::width - radius);
  const double centre_y = random.uniform(radius, ImageSet::height - radius);
  const Index phase = random.below(4);
  const double background = random.uniform(40, 160);
  const double slope_x = random.uniform(-2, 2);  // a shade across the background, a pixel
  const double slope_y = random.uniform(-2, 2);

  for (Index c = 0; c < ImageSet::channels; ++c) {
    for (Index y = 0; y < ImageSet::height; ++y) {
      for (Index x = 0; x < ImageSet::width; ++x) {
        const double dx = static_cast<double>(x) + 0.5 - centre_x;
        const double dy = static_cast<double>(y) + 0.5 - centre_y;
        double value = background + slope_x * dx + slope_y * dy;
        if (inside_shape(shape, dx / radius, dy / radius)) {
          const bool dark = (((stripes_are_rows ? y : x) + phase) / 2) % 2 == 1;
          value = colour[static_cast<std::size_t>(c)] * brightness * (dark ? 0.5 : 1.0);
        }
        value += 255 * noise * random.uniform(-1, 1);
        pixels[static_cast<std::size_t>((c * ImageSet::height + y) * ImageSet::width + x)] =
            static_cast<std::uint8_t>(std::clamp(value + 0.5, 0.0, 255.0));
      }
    }
  }
}

}  // namespace detail

/// n generated images of 10 classes, for machines without the data set and for tests. This is NOT
/// CIFAR-10, and no accuracy on it says anything about CIFAR-10: it is far easier. Class k is the
/// shape k mod 5 (disc, ring, square, triangle, cross), striped down (k < 5) or across (k >= 5),
/// its hue near k / 10 of the colour wheel, at a random place and size on a grey background, with
/// noise uniform in +-noise (in units of the full range). Labels go round: image i is of class
/// i mod 10. Image i is a function of (seed, i, noise) alone: a longer set begins with the shorter
/// one, and another seed gives another set of the same classes, for testing.
/// Throws InvalidArgument for n outside [0, 2^32) or noise outside [0, 1].
inline ImageSet synthetic_images(Index n, std::uint64_t seed, double noise = 0.1) {
  require(n >= 0 && n <= Index{std::numeric_limits<std::uint32_t>::max()},
          "synthetic_images: n must be in [0, 2^32), got ", n);
  require(noise >= 0 && noise <= 1, "synthetic_images: noise must be in [0, 1], got ", noise);
  ImageSet images;
  images.labels.resize(static_cast<std::size_t>(n));
  images.pixels.resize(static_cast<std::size_t>(n * ImageSet::image_size));
  parallel_for(n, [&](Index i) {
    const int label = static_cast<int>(i % ImageSet::classes);
    images.labels[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(label);
    detail::draw_synthetic_image(
        label, noise, Random(seed, Purpose::synthetic_data, 0, static_cast<std::uint32_t>(i)),
        std::span(images.pixels)
            .subspan(static_cast<std::size_t>(i * ImageSet::image_size),
                     static_cast<std::size_t>(ImageSet::image_size)));
  });
  return images;
}

}  // namespace deq
