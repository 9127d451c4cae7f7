// SPDX-License-Identifier: MIT
#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include <deq/core/parallel.hpp>
#include <deq/io/cifar10.hpp>

namespace {

namespace fs = std::filesystem;
using deq::Index;

constexpr std::size_t record_size = 3073;
constexpr std::size_t batch_size = 10000 * record_size;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    static int count = 0;
    path_ = fs::temp_directory_path() / deq::message("deq_cifar10_test_", ::getpid(), '_', count++);
    fs::create_directory(path_);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(std::string_view name) const { return path_ / name; }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

/// n records; record i has label i mod 10, and pixel p is a number of its own in each image.
std::vector<std::uint8_t> records(std::size_t n) {
  std::vector<std::uint8_t> out;
  for (std::size_t i = 0; i < n; ++i) {
    out.push_back(static_cast<std::uint8_t>(i % 10));
    for (std::size_t p = 0; p < 3072; ++p)
      out.push_back(static_cast<std::uint8_t>((i * 31 + p * 7) % 251));
  }
  return out;
}

void write(const fs::path& path, std::span<const std::uint8_t> bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

/// A batch of 10000 records that takes no space on the disk: zeros, but for the first label and the
/// last pixel.
void write_sparse_batch(const fs::path& path, std::uint8_t label, std::uint8_t last_pixel) {
  write(path, std::array{label});
  fs::resize_file(path, batch_size - 1);
  std::ofstream(path, std::ios::binary | std::ios::app).put(static_cast<char>(last_pixel));
}

void write_sparse_data_set(const fs::path& directory) {
  for (std::uint8_t i = 1; i <= 5; ++i)
    write_sparse_batch(directory / deq::message("data_batch_", int{i}, ".bin"), i,
                       static_cast<std::uint8_t>(100 + i));
  write_sparse_batch(directory / "test_batch.bin", 9, 200);
}

template <class Exception, class Action>
std::string message_of(Action&& action) {
  try {
    action();
  } catch (const Exception& error) {
    return error.what();
  } catch (const std::exception& error) {
    FAIL("threw another exception: " << error.what());
  }
  FAIL("threw nothing");
  return {};
}

bool contains(const std::string& text, std::string_view part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("cifar10: a batch is labels and planes") {
  const TemporaryDirectory directory;
  const std::vector<std::uint8_t> bytes = records(13);
  write(directory / "batch.bin", bytes);
  const deq::ImageSet images = deq::load_cifar10_batch(directory / "batch.bin");
  REQUIRE(images.size() == 13);
  REQUIRE(images.pixels.size() == 13 * 3072);
  for (Index i = 0; i < images.size(); ++i) {
    const auto record =
        std::span(bytes).subspan(static_cast<std::size_t>(i) * record_size, record_size);
    CHECK(images.labels[static_cast<std::size_t>(i)] == record[0]);
    CHECK(std::ranges::equal(images.image(i), record.subspan(1)));
  }
  CHECK(images.image(12).data() == images.pixels.data() + 12 * 3072);
}

TEST_CASE("cifar10: a broken batch is rejected") {
  const TemporaryDirectory directory;
  const fs::path path = directory / "batch.bin";
  const auto rejected = [&] {
    return message_of<deq::FormatError>([&] { deq::load_cifar10_batch(path); });
  };
  std::vector<std::uint8_t> bytes = records(4);
  SUBCASE("truncated") {
    bytes.pop_back();
    write(path, bytes);
    const std::string text = rejected();
    CHECK(contains(text, "batch.bin: 12291 bytes, expected a multiple of 3073"));
    CHECK(contains(text, "30730000"));
  }
  SUBCASE("a byte too many") {
    bytes.push_back(0);
    write(path, bytes);
    CHECK(contains(rejected(), "12293 bytes, expected a multiple of 3073"));
  }
  SUBCASE("empty") {
    write(path, {});
    CHECK(contains(rejected(), "batch.bin: 0 bytes"));
  }
  SUBCASE("label above 9") {
    bytes[2 * record_size] = 10;
    write(path, bytes);
    CHECK(contains(rejected(), "batch.bin: record 2 has label 10, expected 0...9"));
  }
  SUBCASE("missing") {
    const std::string text = message_of<deq::IoError>([&] { deq::load_cifar10_batch(path); });
    CHECK(contains(text, "batch.bin: No such file or directory"));
  }
}

TEST_CASE("cifar10: the data set is five batches and one") {
  const TemporaryDirectory directory;
  fs::path files = directory.path();
  SUBCASE("in the directory") {}
  SUBCASE("unpacked below it") {
    files /= "cifar-10-batches-bin";
    fs::create_directory(files);
  }
  write_sparse_data_set(files);
  const deq::Cifar10 data = deq::load_cifar10(directory.path());
  REQUIRE(data.train.size() == 50000);
  REQUIRE(data.test.size() == 10000);
  REQUIRE(data.train.pixels.size() == 50000u * 3072u);
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(data.train.labels[i * 10000] == i + 1);
    CHECK(data.train.labels[i * 10000 + 1] == 0);
    CHECK(data.train.image(static_cast<Index>(i * 10000 + 9999)).back() == 101 + i);
  }
  CHECK(data.test.labels[0] == 9);
  CHECK(data.test.image(9999).back() == 200);
  CHECK(data.test.image(9999).front() == 0);
}

TEST_CASE("cifar10: an incomplete data set is rejected") {
  const TemporaryDirectory directory;
  SUBCASE("nothing there: says how to get it") {
    const std::string text = message_of<deq::IoError>([&] { deq::load_cifar10(directory.path()); });
    CHECK(contains(text, "cannot find " + (directory / "data_batch_1.bin").string()));
    CHECK(contains(text, "bash examples/get_cifar10.sh " + directory.path().string()));
  }
  SUBCASE("one file missing") {
    write_sparse_data_set(directory.path());
    fs::remove(directory / "data_batch_4.bin");
    const std::string text = message_of<deq::IoError>([&] { deq::load_cifar10(directory.path()); });
    CHECK(contains(text, "data_batch_4.bin; to get CIFAR-10 run"));
  }
  SUBCASE("whole records missing") {
    write_sparse_data_set(directory.path());
    fs::resize_file(directory / "test_batch.bin", batch_size - record_size);
    const std::string text =
        message_of<deq::FormatError>([&] { deq::load_cifar10(directory.path()); });
    CHECK(contains(text, "test_batch.bin: 30726927 bytes, expected 30730000; is the file"));
  }
}

TEST_CASE("synthetic images: the same for any number of threads and any length") {
  const int threads = deq::num_threads();
  deq::set_num_threads(1);
  const deq::ImageSet one = deq::synthetic_images(23, 7);
  deq::set_num_threads(3);
  const deq::ImageSet three = deq::synthetic_images(40, 7);
  deq::set_num_threads(threads);
  REQUIRE(one.size() == 23);
  REQUIRE(one.pixels.size() == 23 * 3072);
  CHECK(std::equal(one.pixels.begin(), one.pixels.end(), three.pixels.begin()));
  CHECK(deq::synthetic_images(23, 8).pixels != one.pixels);
  CHECK(deq::synthetic_images(23, 7, 0.2).pixels != one.pixels);
  for (Index i = 0; i < three.size(); ++i)
    CHECK(three.labels[static_cast<std::size_t>(i)] == i % 10);
  CHECK_FALSE(std::ranges::equal(three.image(0), three.image(10)));
}

TEST_CASE("synthetic images: the classes can be told apart, but not at a glance") {
  // The nearest mean image of the class, learnt on one set and tested on another.
  const deq::ImageSet train = deq::synthetic_images(1000, 1);
  const deq::ImageSet test = deq::synthetic_images(500, 2);
  std::vector<std::vector<double>> mean(10, std::vector<double>(3072, 0.0));
  for (Index i = 0; i < train.size(); ++i) {
    std::vector<double>& sum = mean[train.labels[static_cast<std::size_t>(i)]];
    for (std::size_t p = 0; p < 3072; ++p) sum[p] += train.image(i)[p] / 100.0;
  }
  int correct = 0;
  for (Index i = 0; i < test.size(); ++i) {
    std::array<double, 10> distance{};
    for (std::size_t k = 0; k < 10; ++k)
      for (std::size_t p = 0; p < 3072; ++p) {
        const double difference = mean[k][p] - test.image(i)[p];
        distance[k] += difference * difference;
      }
    const auto nearest = std::min_element(distance.begin(), distance.end()) - distance.begin();
    correct += nearest == test.labels[static_cast<std::size_t>(i)];
  }
  CHECK(correct > 100);  // of 500; chance is 50
  CHECK(correct < 400);  // something is left for a network to learn
}

TEST_CASE("synthetic images: what is refused") {
  CHECK(deq::synthetic_images(0, 1).size() == 0);
  CHECK(contains(message_of<deq::InvalidArgument>([] { deq::synthetic_images(-1, 1); }), "got -1"));
  CHECK(contains(message_of<deq::InvalidArgument>([] { deq::synthetic_images(1, 1, 1.5); }),
                 "got 1.5"));
  CHECK_THROWS_AS(deq::synthetic_images(Index{1} << 32, 1), deq::InvalidArgument);
}
