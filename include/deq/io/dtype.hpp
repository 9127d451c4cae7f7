// SPDX-License-Identifier: MIT
// The types of numbers in files, and their bytes.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>

namespace deq {

/// The element type of a tensor in a file.
enum class Dtype : std::uint8_t {
  f64,
  f32,
  f16,
  bf16,
  i64,
  i32,
  i16,
  i8,
  u64,
  u32,
  u16,
  u8,
  boolean,
};

namespace detail {

struct DtypeRow {
  Dtype dtype;
  std::string_view name;
  std::size_t bytes;
};

/// In the order of the enumeration.
inline constexpr std::array dtype_table{
    DtypeRow{Dtype::f64, "F64", 8},     DtypeRow{Dtype::f32, "F32", 4},
    DtypeRow{Dtype::f16, "F16", 2},     DtypeRow{Dtype::bf16, "BF16", 2},
    DtypeRow{Dtype::i64, "I64", 8},     DtypeRow{Dtype::i32, "I32", 4},
    DtypeRow{Dtype::i16, "I16", 2},     DtypeRow{Dtype::i8, "I8", 1},
    DtypeRow{Dtype::u64, "U64", 8},     DtypeRow{Dtype::u32, "U32", 4},
    DtypeRow{Dtype::u16, "U16", 2},     DtypeRow{Dtype::u8, "U8", 1},
    DtypeRow{Dtype::boolean, "BOOL", 1}};

/// The number whose little-endian bytes start at p, aligned or not.
template <class T>
T load_little_endian(const std::byte* p) {
  std::array<std::byte, sizeof(T)> bytes;
  std::copy_n(p, sizeof(T), bytes.begin());
  if constexpr (std::endian::native == std::endian::big) std::reverse(bytes.begin(), bytes.end());
  return std::bit_cast<T>(bytes);
}

template <class T>
std::array<std::byte, sizeof(T)> little_endian_bytes(T value) {
  auto bytes = std::bit_cast<std::array<std::byte, sizeof(T)>>(value);
  if constexpr (std::endian::native == std::endian::big) std::reverse(bytes.begin(), bytes.end());
  return bytes;
}

/// IEEE 754 binary16: sign, 5 bits of exponent (bias 15), 10 bits of fraction. Exact.
inline float half_to_float(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 0x3FF;
  float magnitude = 0;
  if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity()
                              : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(fraction + 0x400), exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

}  // namespace detail

/// The format's word for a type, "F32" for instance.
constexpr std::string_view name(Dtype dtype) {
  return detail::dtype_table[static_cast<std::size_t>(dtype)].name;
}
/// Bytes an element.
constexpr std::size_t element_size(Dtype dtype) {
  return detail::dtype_table[static_cast<std::size_t>(dtype)].bytes;
}

/// The element types that memory holds: float, double and the integers of up to 8 bytes.
template <class T>
concept TensorScalar = std::same_as<T, float> || std::same_as<T, double> ||
    (std::integral<T> && !std::same_as<T, bool> && !std::same_as<T, char> && sizeof(T) <= 8);

/// The type in a file of an array of T, which may also be bool.
template <class T>
  requires TensorScalar<T> || std::same_as<T, bool>
constexpr Dtype dtype_of() {
  if constexpr (std::same_as<T, bool>) {
    return Dtype::boolean;
  } else if constexpr (std::floating_point<T>) {
    return sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  } else if constexpr (std::signed_integral<T>) {
    if (sizeof(T) == 8) return Dtype::i64;
    if (sizeof(T) == 4) return Dtype::i32;
    return sizeof(T) == 2 ? Dtype::i16 : Dtype::i8;
  } else {
    if (sizeof(T) == 8) return Dtype::u64;
    if (sizeof(T) == 4) return Dtype::u32;
    return sizeof(T) == 2 ? Dtype::u16 : Dtype::u8;
  }
}

}  // namespace deq
