// SPDX-License-Identifier: MIT
// Weights in and out: the safetensors format (github.com/huggingface/safetensors), which PyTorch,
// JAX and others write. A file is
//     8 bytes    N, the length of the header, little-endian
//     N bytes    the header: JSON, {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}
//     the rest   the data: row-major, little-endian; offsets count from its first byte
// The optional "__metadata__" of the header maps strings to strings.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <deq/core/bfloat16.hpp>
#include <deq/core/error.hpp>
#include <deq/core/shape.hpp>
#include <deq/core/types.hpp>
#include <deq/io/atomic_file.hpp>
#include <deq/io/dtype.hpp>
#include <deq/io/json.hpp>
#include <deq/io/read_file.hpp>

namespace deq {

namespace detail {
/// The reference implementation's limit. What a header takes in memory is bounded by
/// max_json_values.
inline constexpr std::uint64_t max_safetensors_header = 100'000'000;
inline constexpr std::string_view safetensors_metadata_key = "__metadata__";
}  // namespace detail

/// A safetensors file that has been opened and checked. Only the header is kept in memory; a tensor
/// is read from the file when it is asked for, so the file must not change meanwhile. Reading is
/// const, and safe from several threads at once.
class SafetensorsFile {
 public:
  /// Opens a file and holds its header against every rule of the format: its length, its JSON (no
  /// name twice), the fields of each tensor, and offsets that cover the data without an overlap or
  /// a gap. Throws IoError if the file cannot be read; FormatError, naming file and tensor, if a
  /// rule is broken, a dtype is none of Dtype, or a rank is above Shape::max_rank.
  static SafetensorsFile open(const std::filesystem::path& path) { return SafetensorsFile(path); }

  /// The names of the tensors, in the order of their data.
  std::vector<std::string> names() const {
    std::vector<std::string> out;
    for (const Entry& entry : entries_) out.push_back(entry.name);
    return out;
  }
  bool contains(std::string_view name) const { return index_.find(name) != index_.end(); }
  /// The shape of a tensor. Throws InvalidArgument if there is none of that name, like all below.
  const Shape& shape(std::string_view name) const { return find(name).shape; }
  Dtype dtype(std::string_view name) const { return find(name).dtype; }
  /// The "__metadata__" of the header; empty if it has none.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return path_; }

  /// The elements of a tensor, row-major, as T. To a floating-point T every dtype converts, rounded
  /// to nearest (beyond its range: infinity); to an integral T integers and BOOL (0 or 1) do.
  /// Throws FormatError for floating-point data as integers and for an integer that T cannot hold;
  /// IoError if the file has become shorter. Transient memory: the bytes of the tensor.
  template <TensorScalar T>
  std::vector<T> read(std::string_view name) const {
    const Entry& entry = find(name);
    std::vector<T> out(static_cast<std::size_t>(entry.shape.size()));
    read(entry, std::span<T>(out));
    return out;
  }

  /// The same into memory that is there already. Throws ShapeError if `out` has another length.
  template <TensorScalar T>
  void read_into(std::string_view name, std::span<T> out) const {
    const Entry& entry = find(name);
    require<ShapeError>(static_cast<Index>(out.size()) == entry.shape.size(), where(name),
                        "has shape ", entry.shape, ", ", entry.shape.size(),
                        " elements, but room for ", out.size(), " was given");
    read(entry, out);
  }

 private:
  struct Entry {
    std::string name;
    Dtype dtype;
    Shape shape;
    std::uint64_t begin;  // bytes, from the start of the data
    std::uint64_t end;
  };

  explicit SafetensorsFile(const std::filesystem::path& path) : path_(path) {
    const std::uint64_t size = detail::checked_file_size(path);
    const Json header = read_header(size);
    for (const auto& [name, value] : *header.get_if<Json::Object>()) {
      if (name == detail::safetensors_metadata_key) {
        read_metadata(value);
      } else {
        entries_.push_back(parse_entry(name, value));
      }
    }
    std::stable_sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) {
      return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
    });
    check_cover(size - data_start_);
    for (std::size_t i = 0; i < entries_.size(); ++i) index_.emplace(entries_[i].name, i);
  }

  Json read_header(std::uint64_t size) {
    require<FormatError>(size >= 8, path_.string(), ": ", size,
                         " bytes are too few for a safetensors file, whose header length takes 8");
    std::array<std::byte, 8> prefix;
    detail::read_bytes(path_, 0, prefix);
    const auto length = detail::load_little_endian<std::uint64_t>(prefix.data());
    require<FormatError>(length <= detail::max_safetensors_header, path_.string(),
                         ": header length ", length, " is above the limit of ",
                         detail::max_safetensors_header, "; is this a safetensors file?");
    require<FormatError>(length <= size - 8, path_.string(), ": header length ", length,
                         ", but only ", size - 8, " bytes follow; is the file truncated?");
    std::string text(static_cast<std::size_t>(length), '\0');
    detail::read_bytes(path_, 8, std::as_writable_bytes(std::span(text)));
    require<FormatError>(text.starts_with('{'), path_.string(),
                         ": the header does not begin with '{'");
    data_start_ = 8 + length;
    return parse_json(text, path_.string() + ": header");
  }

  void read_metadata(const Json& value) {
    const auto* members = value.get_if<Json::Object>();
    require<FormatError>(members, path_.string(), ": __metadata__ is not an object");
    for (const auto& [key, member] : *members) {
      const auto* text = member.get_if<std::string>();
      require<FormatError>(text, path_.string(), ": __metadata__: \"", key, "\" is not a string");
      metadata_.emplace(key, *text);
    }
  }

  /// The start of a message about one tensor.
  std::string where(std::string_view name) const {
    return message(path_.string(), ": tensor \"", name, "\" ");
  }

  /// A field of the header that must be a T.
  template <class T>
  const T& field(std::string_view name, const Json& tensor, std::string_view key,
                 std::string_view type) const {
    const Json* value = tensor.find(key);
    require<FormatError>(value, where(name), "has no \"", key, '"');
    require<FormatError>(value->get_if<T>(), where(name), "has a \"", key, "\" that is not ", type);
    return *value->get_if<T>();
  }

  /// A non-negative integer that fits an Index.
  std::uint64_t integer(std::string_view name, std::string_view key, const Json& value) const {
    const auto* number = value.get_if<Json::Number>();
    require<FormatError>(number, where(name), "has a \"", key,
                         "\" with an element that is no number");
    const std::string& text = number->text;
    std::uint64_t out = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
    require<FormatError>(
        error == std::errc() && end == text.data() + text.size() && std::in_range<Index>(out),
        where(name), "has a \"", key, "\" with ", text,
        ", which is no non-negative integer below 2^63");
    return out;
  }

  Entry parse_entry(const std::string& name, const Json& tensor) const {
    require<FormatError>(tensor.get_if<Json::Object>(), where(name), "is not a JSON object");
    const auto& dtype_name = field<std::string>(name, tensor, "dtype", "a string");
    const auto& extents = field<Json::Array>(name, tensor, "shape", "an array");
    const auto& offsets = field<Json::Array>(name, tensor, "data_offsets", "an array");

    const auto row = std::find_if(detail::dtype_table.begin(), detail::dtype_table.end(),
                                  [&](const auto& r) { return r.name == dtype_name; });
    require<FormatError>(row != detail::dtype_table.end(), where(name), "has dtype \"", dtype_name,
                         "\", which is not supported");
    require<FormatError>(offsets.size() == 2, where(name), "has ", offsets.size(),
                         " data_offsets, expected 2");
    const std::uint64_t begin = integer(name, "data_offsets", offsets[0]);
    const std::uint64_t end = integer(name, "data_offsets", offsets[1]);
    require<FormatError>(begin <= end, where(name), "has data_offsets [", begin, ", ", end,
                         "], which end before they begin");

    const Shape shape = parse_shape(name, extents, row->bytes);
    const std::uint64_t bytes = static_cast<std::uint64_t>(shape.size()) * row->bytes;
    require<FormatError>(end - begin == bytes, where(name), "has data_offsets [", begin, ", ", end,
                         "], ", end - begin, " bytes, but its shape ", shape, " and dtype ",
                         dtype_name, " need ", bytes);
    return {name, row->dtype, shape, begin, end};
  }

  Shape parse_shape(std::string_view name, const Json::Array& extents,
                    std::size_t bytes_per_element) const {
    require<FormatError>(std::cmp_less_equal(extents.size(), Shape::max_rank), where(name),
                         "has rank ", extents.size(), ", at most ", Shape::max_rank,
                         " is supported");
    std::vector<Index> out;
    std::uint64_t bytes = bytes_per_element;
    for (const Json& value : extents) {
      const std::uint64_t extent = integer(name, "shape", value);
      constexpr auto limit = static_cast<std::uint64_t>(std::numeric_limits<Index>::max());
      require<FormatError>(extent == 0 || bytes <= limit / extent, where(name),
                           "has a shape of 2^63 bytes or more");
      if (extent > 0) bytes *= extent;  // the extents beside a 0 are a Shape's as well
      out.push_back(static_cast<Index>(extent));
    }
    return Shape(out);
  }

  /// The entries, in the order of their data, cover its `size` bytes without an overlap or a gap.
  void check_cover(std::uint64_t size) const {
    std::uint64_t covered = 0;
    for (const Entry& entry : entries_) {
      require<FormatError>(entry.begin >= covered, where(entry.name), "begins at data byte ",
                           entry.begin, ", inside the tensor before it, which ends at ", covered);
      require<FormatError>(entry.begin == covered, where(entry.name), "begins at data byte ",
                           entry.begin, ", ", entry.begin - covered,
                           " bytes after the end of the data before it");
      require<FormatError>(entry.end <= size, where(entry.name), "ends at data byte ", entry.end,
                           ", but the file has ", size, " bytes of data; is it truncated?");
      covered = entry.end;
    }
    require<FormatError>(covered == size, path_.string(), ": the last ", size - covered,
                         " bytes belong to no tensor");
  }

  const Entry& find(std::string_view name) const {
    const auto found = index_.find(name);
    require(found != index_.end(), path_.string(), " has no tensor \"", name, '"');
    return entries_[found->second];
  }

  template <class T>
  void read(const Entry& entry, std::span<T> out) const {
    std::vector<std::byte> raw(static_cast<std::size_t>(entry.end - entry.begin));
    detail::read_bytes(path_, data_start_ + entry.begin, raw);
    const auto convert_integer = [&]<class Stored>(Stored) {
      convert(entry, raw, out, detail::load_little_endian<Stored>);
    };
    const auto convert_float = [&](auto decode) {
      if constexpr (std::floating_point<T>) {
        convert(entry, raw, out, decode);
      } else {
        throw FormatError(message(where(entry.name), "has floating-point elements (",
                                  deq::name(entry.dtype), ") and was asked for as integers"));
      }
    };
    using detail::load_little_endian;
    switch (entry.dtype) {
      case Dtype::f64: return convert_float(load_little_endian<double>);
      case Dtype::f32: return convert_float(load_little_endian<float>);
      case Dtype::f16:
        return convert_float([](const std::byte* p) {
          return detail::half_to_float(load_little_endian<std::uint16_t>(p));
        });
      case Dtype::bf16:
        return convert_float(
            [](const std::byte* p) { return static_cast<float>(load_little_endian<Bfloat16>(p)); });
      case Dtype::i64: return convert_integer(std::int64_t{});
      case Dtype::i32: return convert_integer(std::int32_t{});
      case Dtype::i16: return convert_integer(std::int16_t{});
      case Dtype::i8: return convert_integer(std::int8_t{});
      case Dtype::u64: return convert_integer(std::uint64_t{});
      case Dtype::u32: return convert_integer(std::uint32_t{});
      case Dtype::u16: return convert_integer(std::uint16_t{});
      case Dtype::u8: return convert_integer(std::uint8_t{});
      case Dtype::boolean:
        require<FormatError>(
            std::all_of(raw.begin(), raw.end(), [](std::byte b) { return b <= std::byte{1}; }),
            where(entry.name), "is BOOL and has bytes other than 0 and 1");
        return convert_integer(std::uint8_t{});
    }
  }

  template <class T, class Decode>
  void convert(const Entry& entry, std::span<const std::byte> raw, std::span<T> out,
               Decode decode) const {
    const std::size_t step = element_size(entry.dtype);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const auto stored = decode(raw.data() + i * step);
      if constexpr (std::integral<T>) {
        if (!std::in_range<T>(stored))
          throw FormatError(message(where(entry.name), "has ", +stored, " at element ", i,
                                    ", which does not fit ", name(dtype_of<T>())));
      }
      out[i] = static_cast<T>(stored);
    }
  }

  std::filesystem::path path_;
  std::uint64_t data_start_ = 0;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> index_;
  std::map<std::string, std::string> metadata_;
};

/// Collects tensors and writes them as one safetensors file, which any implementation reads. The
/// header is padded with spaces to a multiple of 8 bytes, and the tensors are laid out by
/// decreasing element size, otherwise in the order added: each is aligned for readers that map the
/// file. The same content gives the same bytes.
class SafetensorsWriter {
 public:
  /// Adds a tensor, a copy of `values`: row-major, shape.size() of them. Its dtype in the file is
  /// dtype_of<T>(). Throws ShapeError if shape and values do not agree; InvalidArgument if the name
  /// is taken ("__metadata__" always is) or is not UTF-8.
  template <class T>
    requires TensorScalar<T> || std::same_as<T, bool>
  void add(std::string name, const Shape& shape, std::span<const T> values) {
    require(is_utf8(name), "SafetensorsWriter: a tensor's name is not UTF-8");
    require(name != detail::safetensors_metadata_key &&
                std::none_of(tensors_.begin(), tensors_.end(),
                             [&](const Tensor& t) { return t.name == name; }),
            "SafetensorsWriter: the name \"", name, "\" is taken");
    require<ShapeError>(static_cast<Index>(values.size()) == shape.size(),
                        "SafetensorsWriter: tensor \"", name, "\" of shape ", shape, " needs ",
                        shape.size(), " values, got ", values.size());
    std::vector<std::byte> data;
    data.reserve(values.size_bytes());
    for (const T value : values) {
      const auto bytes = detail::little_endian_bytes(value);
      data.insert(data.end(), bytes.begin(), bytes.end());
    }
    tensors_.push_back({std::move(name), dtype_of<T>(), shape, std::move(data)});
  }

  /// Sets one entry of the header's "__metadata__". Throws InvalidArgument if it is not UTF-8.
  void metadata(const std::string& key, const std::string& value) {
    require(is_utf8(key) && is_utf8(value), "SafetensorsWriter: metadata that is not UTF-8");
    metadata_[key] = value;
  }

  /// Writes the file, whole or not at all (write_file_atomically). Throws IoError; InvalidArgument
  /// if its header is larger than one that SafetensorsFile reads.
  void write(const std::filesystem::path& path) const {
    std::vector<const Tensor*> layout;
    for (const Tensor& tensor : tensors_) layout.push_back(&tensor);
    std::stable_sort(layout.begin(), layout.end(), [](const Tensor* a, const Tensor* b) {
      return element_size(a->dtype) > element_size(b->dtype);
    });
    const std::string text = header(layout);
    write_file_atomically(path, [&](std::ostream& out) {
      const auto put = [&](std::span<const std::byte> bytes) {
        out.write(reinterpret_cast<const char*>(bytes.data()),
                  static_cast<std::streamsize>(bytes.size()));
      };
      put(detail::little_endian_bytes(std::uint64_t{text.size()}));
      put(std::as_bytes(std::span(text)));
      for (const Tensor* tensor : layout) put(tensor->data);
    });
  }

 private:
  struct Tensor {
    std::string name;
    Dtype dtype;
    Shape shape;
    std::vector<std::byte> data;
  };

  std::string header(std::span<const Tensor* const> layout) const {
    std::string out = "{";
    std::size_t values = 2 + metadata_.size();  // that its JSON has, or one less
    const auto separate = [&] { out += out.back() == '{' ? "" : ","; };
    if (!metadata_.empty()) {
      out += json_string(detail::safetensors_metadata_key) + ":{";
      for (const auto& [key, value] : metadata_) {
        separate();
        out += json_string(key) + ':' + json_string(value);
      }
      out += '}';
    }
    std::uint64_t begin = 0;
    for (const Tensor* tensor : layout) {
      separate();
      const std::uint64_t end = begin + tensor->data.size();
      out += json_string(tensor->name);
      out += message(":{\"dtype\":\"", name(tensor->dtype), "\",\"shape\":[");
      for (Index i = 0; i < tensor->shape.rank(); ++i)
        out += message(i ? "," : "", tensor->shape[i]);
      out += message("],\"data_offsets\":[", begin, ',', end, "]}");
      begin = end;
      values += 6 + static_cast<std::size_t>(tensor->shape.rank());
    }
    out += '}';
    require(values <= detail::max_json_values, "SafetensorsWriter: the header has ", values,
            " values, more than the ", detail::max_json_values, " that SafetensorsFile reads");
    out.resize((out.size() + 7) / 8 * 8, ' ');
    require(out.size() <= detail::max_safetensors_header, "SafetensorsWriter: the header has ",
            out.size(), " bytes, above the format's limit of ", detail::max_safetensors_header);
    return out;
  }

  std::vector<Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace deq
