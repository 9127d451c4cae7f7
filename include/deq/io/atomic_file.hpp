// SPDX-License-Identifier: MIT
// A file is either its old self or its new self, also after a crash: written beside its target,
// forced to the disk, and renamed. POSIX.
#pragma once

#include <array>
#include <atomic>
#include <cerrno>
#include <concepts>
#include <cstddef>
#include <cstdio>
#include <fcntl.h>
#include <filesystem>
#include <ostream>
#include <span>
#include <streambuf>
#include <string>
#include <system_error>
#include <unistd.h>

#include <deq/core/error.hpp>

namespace deq {

namespace detail {

/// A stream's way into a file descriptor. Unlike a std::ofstream it can be synchronised, and it
/// remembers why a write failed.
class DescriptorBuffer : public std::streambuf {
 public:
  explicit DescriptorBuffer(int descriptor) : descriptor_(descriptor) { empty(); }

  /// errno of the first write that failed; 0 if none did.
  int error() const { return error_; }

 protected:
  int_type overflow(int_type c) override {
    if (sync() != 0) return traits_type::eof();
    if (!traits_type::eq_int_type(c, traits_type::eof())) sputc(traits_type::to_char_type(c));
    return traits_type::not_eof(c);
  }
  std::streamsize xsputn(const char* text, std::streamsize count) override {
    if (count < epptr() - pptr()) return std::streambuf::xsputn(text, count);
    return sync() == 0 && write_all(text, count) ? count : 0;
  }
  int sync() override {
    if (!write_all(pbase(), pptr() - pbase())) return -1;
    empty();
    return 0;
  }

 private:
  void empty() { setp(buffer_.data(), buffer_.data() + buffer_.size()); }
  bool write_all(const char* text, std::streamsize count) {
    while (count > 0) {
      const ssize_t written = ::write(descriptor_, text, static_cast<std::size_t>(count));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        if (error_ == 0) error_ = errno;
        return false;
      }
      text += written;
      count -= written;
    }
    return true;
  }

  int descriptor_;
  int error_ = 0;
  std::array<char, 1 << 16> buffer_;
};

/// The file beside the target: gone when this is destroyed, unless committed.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::filesystem::path& target) : target_(target) {
    static std::atomic<unsigned> count{0};
    do {
      path_ = target;
      path_ += message(".tmp-", ::getpid(), '-', count++);
      descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (descriptor_ < 0 && errno == EEXIST);
    if (descriptor_ < 0) fail("create the temporary file beside it", errno);
  }
  ~TemporaryFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
    if (!committed_) ::unlink(path_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int descriptor() const { return descriptor_; }

  void commit() {
    if (::fsync(descriptor_) != 0) fail("force it to the disk", errno);
    const int closed = ::close(descriptor_);
    descriptor_ = -1;
    if (closed != 0) fail("close it", errno);
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail("rename to it", errno);
    committed_ = true;
    synchronize_directory();
  }

  [[noreturn]] void fail(const char* what, int error) const {
    throw IoError(message("cannot write ", target_.string(), ": could not ", what, ": ",
                          std::generic_category().message(error)));
  }

 private:
  /// Makes the rename itself durable. Not every file system can, and the file is complete without
  /// it, so a failure is no error.
  void synchronize_directory() const {
    const std::filesystem::path parent = target_.parent_path() / ".";
    const int directory = ::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0) return;
    ::fsync(directory);
    ::close(directory);
  }

  std::filesystem::path target_;
  std::filesystem::path path_;
  int descriptor_ = -1;
  bool committed_ = false;
};

}  // namespace detail

/// Replaces the file `path` by what fill(std::ostream&) writes. Readers see the old file or the
/// complete new one, never a part, whatever happens; if fill throws, the old file stays and the
/// exception passes. Two writers of one path do not disturb each other; the last to finish wins. A
/// symbolic link is replaced, not followed. The directory must exist.
/// Throws IoError, with the path and the system's reason, if anything cannot be written.
template <class Fill>
  requires std::invocable<Fill&, std::ostream&>
void write_file_atomically(const std::filesystem::path& path, Fill&& fill) {
  detail::TemporaryFile file(path);
  detail::DescriptorBuffer buffer(file.descriptor());
  std::ostream out(&buffer);
  fill(out);
  out.flush();
  if (!out) file.fail("write all of it", buffer.error() != 0 ? buffer.error() : EIO);
  file.commit();
}

/// The same, for a content that is in memory.
inline void write_file_atomically(const std::filesystem::path& path,
                                  std::span<const std::byte> content) {
  write_file_atomically(path, [&](std::ostream& out) {
    out.write(reinterpret_cast<const char*>(content.data()),
              static_cast<std::streamsize>(content.size()));
  });
}

}  // namespace deq
