// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <initializer_list>
#include <limits>
#include <mutex>
#include <new>
#include <span>
#include <utility>
#include <vector>

#include <deq/backend/concept.hpp>
#include <deq/core/host_pool.hpp>
#include <deq/core/shape.hpp>

namespace deq {

/// What is derived from the numbers of a tensor: which kind of thing, and all that it depends on
/// beside them.
struct DerivedKey {
  int kind;
  std::array<Index, 4> depends_on;

  DerivedKey(int of_kind, const std::array<Index, 4>& on = {}) : kind(of_kind), depends_on(on) {}
  bool operator==(const DerivedKey&) const = default;
};

/// A dense row-major array in the memory of backend B. The first dimension of a batched tensor
/// counts samples, so that each sample is contiguous; feature maps are NCHW.
///
/// A Tensor is a handle: a copy names the same numbers (`clone()` copies them), and the memory
/// returns to the backend's pool with the last handle. Operations on tensors never change their
/// operands. A handle made of nothing, or moved from, has no numbers: its shape is (0), its data()
/// null. A tensor made by `view` does not own its memory. A `frozen` handle also keeps what
/// operations derive from its numbers, a weight packed for convolutions, say.
///
/// What nhwc operations make is an `image`: where the backend's ImageScalar is not its Scalar, it
/// is stored as that. Such a tensor is compact: it goes through all operations as the others do,
/// since `record` hands each operation what it takes, but its memory is image_data(), not data().
template <BackendMemory B>
class Tensor {
 public:
  using Backend = B;
  using Scalar = typename B::Scalar;
  using ImageNumber = ImageScalar<B>;

  Tensor() = default;
  /// Uninitialised.
  explicit Tensor(const Shape& shape)
      : shape_(shape), block_(Block::make(bytes_of<Scalar>(shape))) {
    data_ = static_cast<Scalar*>(block_->data);
  }
  /// Uninitialised, stored as images are.
  static Tensor image(const Shape& shape) {
    Tensor t;
    t.shape_ = shape;
    t.block_ = Block::make(bytes_of<ImageNumber>(shape));
    t.data_ = t.block_->data;
    t.compact_ = compact_images<B>;
    return t;
  }
  /// Filled with one value.
  Tensor(const Shape& shape, Scalar value) : Tensor(shape) { B::fill(data(), size(), value); }
  /// Copied from the host, row-major.
  Tensor(const Shape& shape, std::span<const Scalar> values) : Tensor(shape) {
    require<ShapeError>(static_cast<Index>(values.size()) == size(), "Tensor: shape ", shape,
                        " holds ", size(), " values, got ", values.size());
    B::upload_bytes(data_, values.data(), values.size_bytes());
  }
  Tensor(const Shape& shape, std::initializer_list<Scalar> values)
      : Tensor(shape, std::span<const Scalar>(values.begin(), values.size())) {}
  /// Names memory that somebody else owns and keeps alive.
  static Tensor view(Scalar* data, const Shape& shape) {
    Tensor t;
    t.shape_ = shape;
    t.data_ = data;
    return t;
  }

  Tensor(const Tensor& other)
      : shape_(other.shape_),
        data_(other.data_),
        block_(other.block_),
        derived_(other.derived_),
        compact_(other.compact_) {
    if (block_) block_->retain();
    if (derived_) derived_->retain();
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(Tensor other) noexcept {
    swap(other);
    return *this;
  }
  ~Tensor() {
    if (block_) block_->release();
    if (derived_) derived_->release();
  }

  const Shape& shape() const { return shape_; }
  Index size() const { return shape_.size(); }
  Index extent(Index i) const { return shape_[i]; }
  bool compact() const { return compact_; }
  /// The numbers of a tensor that is not compact.
  Scalar* data() const {
    if constexpr (compact_images<B>)
      require(!compact_, "Tensor: an image ", shape_, " is not stored as scalars");
    return static_cast<Scalar*>(data_);
  }
  /// The numbers of an image; null if there are none.
  ImageNumber* image_data() const {
    if constexpr (compact_images<B>)
      require(compact_ || !data_, "Tensor: ", shape_, " is not stored as an image");
    return static_cast<ImageNumber*>(data_);
  }
  explicit operator bool() const { return data_ != nullptr; }
  /// True if no other handle names this memory, so that it may be written in place.
  bool unique() const { return block_ && block_->unique(); }

  /// The same numbers, seen in another shape of the same size.
  Tensor reshaped(const Shape& shape) const {
    require<ShapeError>(shape.size() == size(), "reshape: ", shape_, " to ", shape,
                        " changes the number of elements");
    Tensor t = thawed();
    t.shape_ = shape;
    return t;
  }
  /// Rows [first, first + n) of the outermost dimension; no copy.
  Tensor rows(Index first, Index n) const {
    require<ShapeError>(shape_.rank() >= 1 && first >= 0 && n >= 0 && n <= shape_[0] - first,
                        "rows: ", n, " rows from row ", first, " on are not in ", shape_);
    Tensor t = thawed();
    t.data_ =
        static_cast<char*>(data_) +
        static_cast<std::size_t>(first * shape_.product(1, shape_.rank())) * bytes_of_number();
    t.shape_[0] = n;
    return t;
  }
  /// A handle to the same numbers whose owner promises that they stay as they are while it, a copy
  /// or an alias of it lives.
  Tensor frozen() const {
    Tensor t = thawed();
    t.derived_ = Derived::make();
    return t;
  }
  bool is_frozen() const { return derived_ != nullptr; }
  /// A handle to the same numbers that counts its copies, and finds what it has derived before,
  /// apart from this one: threads that work on the same numbers, each with an alias of its own, do
  /// not write to the same counts. It is never unique.
  Tensor alias() const {
    Tensor t = *this;
    if (t.block_) t.block_ = Block::make_alias(t.block_);
    if (t.derived_) t.derived_ = Derived::make_alias(t.derived_);
    return t;
  }
  /// What `make()` computes from these numbers. On a frozen handle it is computed once for every
  /// key; concurrent callers wait.
  template <class Make>
  Tensor derive(const DerivedKey& key, const Make& make) const {
    return derived_ ? derived_->get(key, make) : make();
  }
  Tensor clone() const {
    if (!data_) return *this;
    Tensor t = compact_ ? image(shape_) : Tensor(shape_);
    B::copy_bytes(t.data_, data_, bytes());
    return t;
  }
  std::vector<Scalar> to_host() const {
    if constexpr (compact_images<B>)
      if (compact_) {
        const std::vector<ImageNumber> values = download<ImageNumber>();
        return {values.begin(), values.end()};
      }
    return download<Scalar>();
  }
  /// The value of a tensor of one element.
  Scalar item() const {
    require<ShapeError>(size() == 1, "item: needs one element, the shape is ", shape_);
    return to_host()[0];
  }
  /// The tensor as a D x B batch: the first dimension counts the samples.
  BatchView<Scalar> batch() const {
    return {data(), shape_.product(1, shape_.rank()), shape_.rank() ? shape_[0] : 1};
  }

 private:
  /// The reference count, on the host, and the numbers, in the backend's memory. Both come from
  /// pools: a tensor made in a steady state asks the system for nothing.
  struct Block {
    static Block* make(std::size_t bytes) { return in_pool(B::allocate(bytes), bytes, nullptr); }
    /// Takes over a reference to `of`, whose numbers it names.
    static Block* make_alias(Block* of) { return in_pool(of->data, of->bytes, of); }
    void retain() { count.fetch_add(1, std::memory_order_relaxed); }
    void release() noexcept {
      if (count.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
      if (alias_of)
        alias_of->release();
      else
        B::deallocate(data, bytes);
      this->~Block();
      HostPool::instance().release(this, sizeof(Block));
    }
    bool unique() const { return !alias_of && count.load(std::memory_order_acquire) == 1; }

    void* data;
    std::size_t bytes;
    Block* alias_of;
    std::atomic<int> count{1};

   private:
    Block(void* numbers, std::size_t size, Block* of) : data(numbers), bytes(size), alias_of(of) {}
    static Block* in_pool(void* numbers, std::size_t size, Block* of) {
      return new (HostPool::instance().acquire(sizeof(Block))) Block(numbers, size, of);
    }
  };

  /// What has been derived from frozen numbers.
  class Derived {
   public:
    static Derived* make() { return make_alias(nullptr); }
    /// Takes over a reference to `of`, which makes what it has not got.
    static Derived* make_alias(Derived* of) {
      return new (HostPool::instance().acquire(sizeof(Derived))) Derived(of);
    }
    void retain() { count_.fetch_add(1, std::memory_order_relaxed); }
    void release() noexcept {
      if (count_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
      if (alias_of_) alias_of_->release();
      this->~Derived();
      HostPool::instance().release(this, sizeof(Derived));
    }
    template <class Make>
    Tensor get(const DerivedKey& key, const Make& make) {
      std::unique_lock lock(mutex_);
      for (const Entry& entry : entries_)
        if (entry.key == key) return entry.value;
      if (!alias_of_) {
        entries_.push_back({key, make()});
        return entries_.back().value;
      }
      lock.unlock();
      // Two threads with one alias may come here both, and note the same.
      const Tensor value = alias_of_->get(key, make).alias();
      lock.lock();
      entries_.push_back({key, value});
      return value;
    }

   private:
    explicit Derived(Derived* of) : alias_of_(of) {}
    struct Entry {
      DerivedKey key;
      Tensor value;
    };
    Derived* alias_of_;
    std::mutex mutex_;
    PoolVector<Entry> entries_;
    std::atomic<int> count_{1};
  };

  Tensor thawed() const {
    Tensor t = *this;
    if (t.derived_) std::exchange(t.derived_, nullptr)->release();
    return t;
  }
  template <class T>
  static std::size_t bytes_of(const Shape& shape) {
    const auto size = static_cast<std::size_t>(shape.size());
    require<ShapeError>(size <= std::numeric_limits<std::size_t>::max() / sizeof(T),
                        "Tensor: ", shape, " is more than memory can hold");
    return size * sizeof(T);
  }
  std::size_t bytes_of_number() const { return compact_ ? sizeof(ImageNumber) : sizeof(Scalar); }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * bytes_of_number(); }
  template <class T>
  std::vector<T> download() const {
    std::vector<T> values(static_cast<std::size_t>(size()));
    B::download_bytes(values.data(), data_, bytes());
    return values;
  }
  void swap(Tensor& other) noexcept {
    std::swap(shape_, other.shape_);
    std::swap(data_, other.data_);
    std::swap(block_, other.block_);
    std::swap(derived_, other.derived_);
    std::swap(compact_, other.compact_);
  }

  Shape shape_{0};
  void* data_ = nullptr;
  Block* block_ = nullptr;
  Derived* derived_ = nullptr;
  bool compact_ = false;
};

}  // namespace deq
