// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>
#include <ostream>
#include <span>

#include <deq/core/error.hpp>
#include <deq/core/types.hpp>

namespace deq {

/// The extents of a row-major tensor, outermost first. Feature maps are NCHW: (samples, channels,
/// height, width). At most `max_rank` dimensions; a scalar has rank 0. The product of the extents
/// that are not 0 is an Index, so that no product of some of them overflows.
class Shape {
 public:
  static constexpr Index max_rank = 6;

  Shape() = default;
  Shape(std::initializer_list<Index> extents)
      : Shape(std::span<const Index>(extents.begin(), extents.size())) {}
  explicit Shape(std::span<const Index> extents) : rank_(static_cast<Index>(extents.size())) {
    require<ShapeError>(rank_ <= max_rank, "Shape: at most ", max_rank, " dimensions, got ", rank_);
    std::copy(extents.begin(), extents.end(), extent_.begin());
    Index product = 1;
    for (Index i = 0; i < rank_; ++i) {
      const Index extent = (*this)[i];
      require<ShapeError>(extent >= 0, "Shape: extent ", i, " is negative: ", extent);
      require<ShapeError>(extent == 0 || !__builtin_mul_overflow(product, extent, &product),
                          "Shape: the extents of ", *this, " multiply to 2^63 or more");
    }
  }

  Index rank() const { return rank_; }
  /// Extent of dimension i; a negative i counts from the last.
  Index operator[](Index i) const {
    return extent_[static_cast<std::size_t>(i < 0 ? i + rank_ : i)];
  }
  Index& operator[](Index i) { return extent_[static_cast<std::size_t>(i < 0 ? i + rank_ : i)]; }
  /// Number of elements.
  Index size() const { return product(0, rank_); }
  /// Product of the extents [first, last).
  Index product(Index first, Index last) const {
    Index n = 1;
    for (Index i = first; i < last; ++i) n *= (*this)[i];
    return n;
  }
  std::span<const Index> extents() const {
    return {extent_.data(), static_cast<std::size_t>(rank_)};
  }

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank_ != b.rank_) return false;
    for (Index i = 0; i < a.rank_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }
  friend std::ostream& operator<<(std::ostream& out, const Shape& shape) {
    out << '(';
    for (Index i = 0; i < shape.rank_; ++i) out << (i ? ", " : "") << shape[i];
    return out << ')';
  }

 private:
  std::array<Index, max_rank> extent_{};
  Index rank_ = 0;
};

}  // namespace deq
