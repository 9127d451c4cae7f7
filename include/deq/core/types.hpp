// SPDX-License-Identifier: MIT
// The words that every other header uses: an index, a batch of samples, a set of active samples.
#pragma once

#include <cstddef>
#include <span>
#include <type_traits>

#include <deq/core/config.hpp>

namespace deq {

using Index = std::ptrdiff_t;

/// A batch of B samples, D numbers each: a D x B matrix, one contiguous column a sample. A view, it
/// owns nothing; whose memory it points to (host or device) is the backend's business.
template <class T>
struct BatchView {
  T* data = nullptr;
  Index dim = 0;    ///< D, numbers a sample
  Index count = 0;  ///< B, samples

  DEQ_HOST_DEVICE T* col(Index sample) const { return data + sample * dim; }
  Index size() const { return dim * count; }
  std::span<T> operator[](Index sample) const {
    return {col(sample), static_cast<std::size_t>(dim)};
  }
  /// The columns [first, first + n).
  BatchView columns(Index first, Index n) const { return {col(first), dim, n}; }

  DEQ_HOST_DEVICE operator BatchView<const T>() const requires(!std::is_const_v<T>) {
    return {data, dim, count};
  }
};

/// Up to `capacity` vectors of length D for each sample (the s, u, v of a low-rank inverse, a
/// Krylov basis): vector i of sample s is contiguous at data + (s * capacity + i) * dim.
template <class T>
struct BasisView {
  T* data = nullptr;
  Index dim = 0;
  Index capacity = 0;

  DEQ_HOST_DEVICE T* vec(Index sample, Index i) const {
    return data + (sample * capacity + i) * dim;
  }
  DEQ_HOST_DEVICE operator BasisView<const T>() const requires(!std::is_const_v<T>) {
    return {data, dim, capacity};
  }
};

/// The samples that an operation acts on, in ascending order: column j of a compact batch belongs
/// to sample id[j] of the whole batch. A sample that has converged is no longer in the set, and
/// costs nothing. On a device the set may keep its length: a negative id is a hole, nobody's.
struct Samples {
  const Index* id = nullptr;
  Index count = 0;

  DEQ_HOST_DEVICE Index operator[](Index j) const { return id[j]; }
  /// Nobody is in the set, as far as the host knows: see Backend's empty().
  bool empty() const { return count == 0; }
};

}  // namespace deq
