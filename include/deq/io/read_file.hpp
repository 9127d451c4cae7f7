// SPDX-License-Identifier: MIT
// Reading a part of a file, with errors that name it.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <span>
#include <system_error>

#include <deq/core/error.hpp>

namespace deq::detail {

/// Bytes in the file `path`. Throws IoError if there is none, or if it is a directory.
inline std::uint64_t checked_file_size(const std::filesystem::path& path) {
  std::error_code error;
  const std::uint64_t size = std::filesystem::file_size(path, error);
  require<IoError>(!error, "cannot read ", path.string(), ": ", error.message());
  return size;
}

/// Fills `out` with the bytes of the file `path` from `offset` on. Throws IoError if it cannot be
/// opened or has fewer bytes.
inline void read_bytes(const std::filesystem::path& path, std::uint64_t offset,
                       std::span<std::byte> out) {
  std::ifstream file(path, std::ios::binary);
  require<IoError>(file.is_open(), "cannot open ", path.string(), ": ",
                   std::generic_category().message(errno));
  file.seekg(static_cast<std::streamoff>(offset));
  file.read(reinterpret_cast<char*>(out.data()), static_cast<std::streamsize>(out.size()));
  require<IoError>(!file.fail(), "cannot read ", path.string(), ": got ", file.gcount(), " of ",
                   out.size(), " bytes from byte ", offset, " on");
}

}  // namespace deq::detail
