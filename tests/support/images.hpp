// SPDX-License-Identifier: MIT
// Images as a backend stores them, from and to scalars.
#pragma once

#include <deq/backend/geometry.hpp>
#include <deq/tape/tensor.hpp>

namespace deq_test {

/// Memory of n numbers for the length of a test.
template <class B>
class Image {
  using S = typename B::Scalar;

 public:
  explicit Image(deq::Index n) : tensor_(deq::Tensor<B>::image({n})) {}
  Image(const S* scalars, deq::Index n) : Image(n) {
    copy_strips(B{}, deq::StripGeometry::single(n), scalars, data(), false);
  }
  deq::ImageScalar<B>* data() const { return tensor_.image_data(); }
  void copy_to(S* scalars) const {
    copy_strips(B{}, deq::StripGeometry::single(tensor_.size()), data(), scalars, false);
  }

 private:
  deq::Tensor<B> tensor_;
};

}  // namespace deq_test
