// SPDX-License-Identifier: MIT
// What a program needs from a file of weights; anything else there is a FormatError.
#pragma once

#include <cstdint>
#include <string>

#include <deq/io/safetensors.hpp>
#include <deq/tape/tensor.hpp>

namespace deq {

namespace detail {
inline void require_tensor(const SafetensorsFile& file, const std::string& name) {
  require<FormatError>(file.contains(name), file.path().string(), ": no tensor \"", name, "\"");
}
}  // namespace detail

/// The tensor of that name, converted to the backend's scalars. Throws FormatError if there is none
/// or it has another shape.
template <BackendMemory B>
Tensor<B> read_tensor(const SafetensorsFile& file, const std::string& name, const Shape& shape) {
  detail::require_tensor(file, name);
  require<FormatError>(file.shape(name) == shape, file.path().string(), ": tensor \"", name,
                       "\" has shape ", file.shape(name), ", not ", shape);
  return Tensor<B>(shape, file.read<typename B::Scalar>(name));
}

/// The integer >= 0 that is the one element of the tensor of that name. Throws FormatError if it is
/// anything else.
inline std::int64_t read_count(const SafetensorsFile& file, const std::string& name) {
  detail::require_tensor(file, name);
  require<FormatError>(file.shape(name).size() == 1, file.path().string(), ": tensor \"", name,
                       "\" has shape ", file.shape(name), ", it should be one number");
  const std::int64_t count = file.read<std::int64_t>(name)[0];
  require<FormatError>(count >= 0, file.path().string(), ": tensor \"", name,
                       "\" should be >= 0, it is ", count);
  return count;
}

}  // namespace deq
