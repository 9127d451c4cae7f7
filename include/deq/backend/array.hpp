// SPDX-License-Identifier: MIT
#pragma once

#include <type_traits>
#include <utility>

#include <deq/core/types.hpp>

namespace deq {

/// A workspace array in the memory of backend B. It grows when it must and never shrinks, so that a
/// second use of the same size allocates nothing. Its contents are undefined after resize().
template <class B, class T = typename B::Scalar>
class Array {
  static_assert(std::is_trivially_copyable_v<T>, "deq::Array holds trivially copyable types only");

 public:
  Array() = default;
  explicit Array(Index n) { resize(n); }
  ~Array() { free(); }
  Array(Array&& other) noexcept { swap(other); }
  Array& operator=(Array&& other) noexcept {
    swap(other);
    return *this;
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void resize(Index n) {
    if (n > capacity_) {
      free();
      data_ = static_cast<T*>(B::allocate(static_cast<std::size_t>(n) * sizeof(T)));
      capacity_ = n;
    }
    size_ = n;
  }
  T* data() const { return data_; }
  Index size() const { return size_; }
  Index bytes() const { return capacity_ * static_cast<Index>(sizeof(T)); }

  /// The array as a D x B batch; resizes it.
  BatchView<T> batch(Index dim, Index count) {
    resize(dim * count);
    return {data_, dim, count};
  }
  /// The array as a basis of `capacity` vectors a sample; resizes it.
  BasisView<T> basis(Index dim, Index capacity, Index count) {
    resize(dim * capacity * count);
    return {data_, dim, capacity};
  }

 private:
  void free() {
    if (data_) B::deallocate(data_, static_cast<std::size_t>(capacity_) * sizeof(T));
    data_ = nullptr;
    capacity_ = size_ = 0;
  }
  void swap(Array& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
  }

  T* data_ = nullptr;
  Index size_ = 0;
  Index capacity_ = 0;
};

}  // namespace deq
