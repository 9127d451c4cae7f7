// SPDX-License-Identifier: MIT
// The emulation of CUDA (tests/cuda_emulation) does what CUDA does, and shows what CUDA may do.
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <cuda_runtime.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include <doctest/doctest.h>

#include "support/maps.hpp"

namespace {

using deq_emulation::Landing;
using deq_emulation::Order;
using deq_test::Noise;

constexpr unsigned everyone = 0xffffffff;

void ok(cudaError_t error) { REQUIRE_MESSAGE(error == cudaSuccess, cudaGetErrorName(error)); }

/// Calls f(order) for a few orders, and goes back to the first one.
template <class F>
void for_each_order(F f) {
  deq_emulation::set_order(Order::forward);
  f();
  deq_emulation::set_order(Order::backward);
  f();
  for (std::uint32_t seed = 1; seed < 4; ++seed) {
    deq_emulation::set_order(Order::shuffled, seed);
    f();
  }
  deq_emulation::set_order(Order::forward);
}

/// An array in device memory.
template <class T>
class Device {
 public:
  explicit Device(std::size_t n) : size_(n) { ok(cudaMalloc(&data_, n * sizeof(T))); }
  explicit Device(const std::vector<T>& x) : Device(x.size()) {
    ok(cudaMemcpy(data_, x.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return data_; }
  std::vector<T> host() const {
    std::vector<T> x(size_);
    ok(cudaMemcpy(x.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return x;
  }

 private:
  std::size_t size_;
  T* data_ = nullptr;
};

cudaLaunchConfig_t shape(dim3 grid, dim3 block, std::size_t shared = 0,
                         cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  return config;
}

template <class... Parameters, class... Arguments>
void launch(dim3 grid, dim3 block, void (*kernel)(Parameters...), Arguments... arguments) {
  const cudaLaunchConfig_t config = shape(grid, block);
  ok(cudaLaunchKernelEx(&config, kernel, arguments...));
}

/// The signal that ends a child process which calls f; 0 if none.
template <class F>
int signal_of(F f) {
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    // Not the handlers of the test runner, nor its reports.
    for (const int s : {SIGSEGV, SIGABRT, SIGBUS}) signal(s, SIG_DFL);
    close(STDERR_FILENO);
    f();
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

// Kernels -----------------------------------------------------------------------------------------

/// out[b] = the sum over block b; blockDim.x is a multiple of 32.
template <class T>
__global__ void __launch_bounds__(1024) block_sum(const T* x, T* out) {
  __shared__ T sums[32];
  T sum = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(everyone, sum, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  sum = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : T{0};
  for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_down_sync(everyone, sum, step);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

struct Scale {
  float factor;
  int n;
};
inline __global__ void scale(Scale s, const float* x, float* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < s.n) y[i] = s.factor * x[i];
}

/// Where every thread of the grid is, in the order of memory.
inline __global__ void coordinates(uint3* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned size = blockDim.x * blockDim.y * blockDim.z;
  out[2 * (block * size + thread)] = make_uint3(blockIdx.x, blockIdx.y, blockIdx.z);
  out[2 * (block * size + thread) + 1] = make_uint3(threadIdx.x, threadIdx.y, threadIdx.z);
}

/// Reads what a neighbour has written; with `wait` after everybody has.
template <bool wait>
__global__ void neighbour(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = static_cast<int>(blockIdx.x) + 1;
  if (wait) __syncthreads();
  out[blockIdx.x * 64 + threadIdx.x] = values[(threadIdx.x + 1) % 64];
  __syncthreads();
}

inline __global__ void warp_functions(int* out) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int* mine = out + threadIdx.x * 10;
  mine[0] = __shfl_sync(everyone, lane, 5);
  mine[1] = __shfl_sync(everyone, lane, 9, 8);
  mine[2] = __shfl_up_sync(everyone, lane, 2);
  mine[3] = __shfl_up_sync(everyone, lane, 3, 16);
  mine[4] = __shfl_down_sync(everyone, lane, 2, 8);
  mine[5] = __shfl_xor_sync(everyone, lane, 8, 8);
  mine[6] = static_cast<int>(__ballot_sync(everyone, lane % 3 == 0));
  mine[7] = __any_sync(everyone, lane == 31);
  mine[8] = __all_sync(everyone, lane < 31);
  // The two halves of the warp apart, and lanes that return while others wait for each other.
  const bool odd = lane % 2 != 0;
  if (odd && lane > 20) return;
  const unsigned half = odd ? 0xaaaaaaaa : 0x55555555;
  mine[9] = odd ? static_cast<int>(__ballot_sync(half, 1)) : __shfl_sync(half, lane, 4);
}

template <int groups_left, bool wait>
__global__ void pipeline(const float* x, float* out) {
  auto* stage = static_cast<float*>(deq_emulation::dynamic_shared());
  const unsigned t = threadIdx.x, n = blockDim.x;
  deq_emulation::copy_async(stage + t, x + t, 4, 4);
  deq_emulation::copy_async_commit();
  deq_emulation::copy_async(stage + n + t, x + n + t, 4, 0);
  deq_emulation::copy_async_commit();
  if (wait) deq_emulation::copy_async_wait(groups_left);
  __syncthreads();
  out[t] = stage[n - 1 - t];
  out[n + t] = stage[n + n - 1 - t];
}

/// One warp multiplies row-major matrices of 16 x k and k x 8.
inline __global__ void multiply_tf32(const float* a, const float* b, float* d) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  using deq_emulation::to_tf32;
  const unsigned fa[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                          to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
  // What tf32 has no bits for does not count.
  const unsigned fb[2] = {to_tf32(b[t * 8 + g]) | 0x1fff, to_tf32(b[(t + 4) * 8 + g]) | 0x0fff};
  float fd[4] = {1, 2, 3, 4};
  deq_emulation::mma_m16n8k8_tf32(fd, fa, fb);
  for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}
inline __global__ void multiply_bf16(const float* a, const float* b, float* d) {
  const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto pair = [](const float* x, unsigned stride) {
    return deq_emulation::pack_bf16(x[0], x[stride]);
  };
  const unsigned fa[4] = {pair(a + g * 16 + 2 * t, 1), pair(a + (g + 8) * 16 + 2 * t, 1),
                          pair(a + g * 16 + 2 * t + 8, 1), pair(a + (g + 8) * 16 + 2 * t + 8, 1)};
  const unsigned fb[2] = {pair(b + 2 * t * 8 + g, 8), pair(b + (2 * t + 8) * 8 + g, 8)};
  float fd[4] = {1, 2, 3, 4};
  deq_emulation::mma_m16n8k16_bf16(fd, fa, fb);
  for (unsigned i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fd[i];
}
inline __global__ void load_matrices(const std::uint16_t* rows, unsigned* out) {
  unsigned r[4], transposed[4];
  deq_emulation::ldmatrix_x4(r, rows + threadIdx.x * 8);
  deq_emulation::ldmatrix_x4_trans(transposed, rows + threadIdx.x * 8);
  for (unsigned m = 0; m < 4; ++m) {
    out[threadIdx.x * 8 + m] = r[m];
    out[threadIdx.x * 8 + 4 + m] = transposed[m];
  }
}

inline __global__ void dynamic_bytes(unsigned* out) {
  const auto* bytes = static_cast<const unsigned*>(deq_emulation::dynamic_shared());
  out[threadIdx.x] = bytes[threadIdx.x];
}

inline __global__ void add(int* x, int y) { atomicAdd(x, y); }
inline __global__ void double_it(int* x) { *x *= 2; }
inline __global__ void count_down(cudaGraphConditionalHandle again, int* left, int* rounds) {
  *rounds += 1;
  *left -= 1;
  cudaGraphSetConditional(again, *left > 0);
}

template <bool barrier>
__global__ void leave_one_behind(int* x) {
  if (threadIdx.x == 3)
    __syncwarp();
  else if (barrier)
    __syncthreads();
  else
    *x = static_cast<int>(__ballot_sync(everyone, 1));
}

}  // namespace

// Execution ---------------------------------------------------------------------------------------

TEST_CASE("a block reduces with shuffles and barriers, whatever the order") {
  Noise random(1);
  std::vector<double> x(5 * 256);
  for (double& xi : x) xi = random();
  const Device<double> in(x), out(5);
  std::vector<double> first;
  for_each_order([&] {
    launch(5, 256, block_sum<double>, in.data(), out.data());
    const std::vector<double> sums = out.host();
    if (first.empty()) first = sums;
    CHECK(sums == first);
  });
  for (std::size_t b = 0; b < 5; ++b) {
    double sum = 0;
    for (std::size_t i = 0; i < 256; ++i) sum += x[b * 256 + i];
    CHECK(first[b] == doctest::Approx(sum).epsilon(1e-12));
  }
}

TEST_CASE("a kernel without barriers runs every thread once") {
  std::vector<float> x(1000);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i);
  const Device<float> in(x), out(1024);
  const std::size_t before = deq_emulation::launches();
  launch(8, 128, scale, Scale{3, 1000}, in.data(), out.data());
  CHECK(deq_emulation::launches() == before + 1);
  const std::vector<float> y = out.host();
  for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(y[i] == 3 * x[i]);
  for (std::size_t i = x.size(); i < y.size(); ++i) CHECK(std::isnan(y[i]));

  const Device<uint3> where(2 * 2 * 3 * 4 * 5 * 6 * 7);
  for_each_order([&] {
    launch(dim3(2, 3, 4), dim3(5, 6, 7), coordinates, where.data());
    std::size_t next = 0;
    bool equal = true;
    const std::vector<uint3> found = where.host();
    for (unsigned b = 0; b < 24; ++b)
      for (unsigned t = 0; t < 210; ++t) {
        const uint3 block = found[next++], thread = found[next++];
        equal = equal && block.x == b % 2 && block.y == b / 2 % 3 && block.z == b / 6;
        equal = equal && thread.x == t % 5 && thread.y == t / 5 % 6 && thread.z == t / 30;
      }
    CHECK(equal);
  });
}

TEST_CASE("a race shows as a difference between orders, and a barrier removes it") {
  const auto run = [](auto kernel, Order order) {
    deq_emulation::set_order(order, 5);
    const Device<int> out(3 * 64);
    launch(3, 64, kernel, out.data());
    deq_emulation::set_order(Order::forward);
    return out.host();
  };
  CHECK(run(neighbour<false>, Order::forward) != run(neighbour<false>, Order::backward));
  CHECK(run(neighbour<false>, Order::forward) != run(neighbour<false>, Order::shuffled));
  CHECK(run(neighbour<true>, Order::forward) == run(neighbour<true>, Order::backward));
  CHECK(run(neighbour<true>, Order::forward) == run(neighbour<true>, Order::shuffled));
}

TEST_CASE("warp functions read the lanes that CUDA reads") {
  const Device<int> out(64 * 10);
  for_each_order([&] {
    ok(cudaMemset(out.data(), 0, 64 * 10 * sizeof(int)));
    launch(1, 64, warp_functions, out.data());
    const std::vector<int> all = out.host();
    for (int t = 0; t < 64; ++t) {
      const int lane = t % 32;
      const int* mine = all.data() + t * 10;
      CAPTURE(t);
      CHECK(mine[0] == 5);
      CHECK(mine[1] == lane / 8 * 8 + 1);
      CHECK(mine[2] == (lane < 2 ? lane : lane - 2));
      CHECK(mine[3] == (lane % 16 < 3 ? lane : lane - 3));
      CHECK(mine[4] == (lane % 8 < 6 ? lane + 2 : lane));
      CHECK(mine[5] == (lane / 8 % 2 == 1 ? lane - 8 : lane));
      CHECK(static_cast<unsigned>(mine[6]) == 0x49249249);
      CHECK(mine[7] == 1);
      CHECK(mine[8] == 0);
      const int odd = lane > 20 ? 0 : 0x000aaaaa;
      CHECK(mine[9] == (lane % 2 ? odd : 4));
    }
  });
}

TEST_CASE("threads that wait forever are reported") {
  const Device<int> out(1);
  for_each_order([&] {
    CHECK(signal_of([&] { launch(1, 32, leave_one_behind<true>, out.data()); }) == SIGABRT);
    CHECK(signal_of([&] { launch(1, 64, leave_one_behind<false>, out.data()); }) == SIGABRT);
  });
}

// Memory ------------------------------------------------------------------------------------------

TEST_CASE("asynchronous copies land at the wait that covers them, or at once") {
  std::vector<float> x(128);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) + 1;
  const Device<float> in(x), out(128);
  const auto run = [&](auto kernel) {
    const cudaLaunchConfig_t config = shape(1, 64, 512);
    ok(cudaLaunchKernelEx(&config, kernel, in.data(), out.data()));
    return out.host();
  };
  for_each_order([&] {
    for (const Landing when : {Landing::at_wait, Landing::at_issue}) {
      deq_emulation::set_landing(when);
      const std::vector<float> none = run(pipeline<0, false>), one = run(pipeline<1, true>),
                               both = run(pipeline<0, true>);
      for (std::size_t t = 0; t < 64; ++t) {
        CHECK(one[t] == x[63 - t]);
        CHECK(both[t] == x[63 - t]);
        CHECK(both[64 + t] == 0);
        CHECK(std::isnan(none[t]) == (when == Landing::at_wait));
        CHECK(std::isnan(one[64 + t]) == (when == Landing::at_wait));
      }
    }
    deq_emulation::set_landing(Landing::at_wait);
  });
}

TEST_CASE("fresh memory is poisoned") {
  const std::size_t blocks = deq_emulation::live_blocks(), bytes = deq_emulation::live_bytes();
  for (int round = 0; round < 2; ++round) {
    const Device<unsigned> x(1000);
    CHECK(deq_emulation::live_blocks() == blocks + 1);
    CHECK(deq_emulation::live_bytes() == bytes + 4000);
    CHECK(reinterpret_cast<std::uintptr_t>(x.data()) % 256 == 0);
    CHECK(x.host() == std::vector<unsigned>(1000, 0xffffffff));
    ok(cudaMemset(x.data(), 0, 4000));

    const cudaLaunchConfig_t config = shape(3, 32, 128);
    ok(cudaLaunchKernelEx(&config, dynamic_bytes, x.data()));
    CHECK(x.host()[31] == 0xffffffff);
    CHECK(x.host()[32] == 0);
  }
  CHECK(deq_emulation::live_blocks() == blocks);
  CHECK(deq_emulation::live_bytes() == bytes);
}

TEST_CASE("host code cannot touch device memory, and kernels cannot leave theirs unnoticed") {
  const Device<int> x(std::vector<int>{1, 2, 3});
  const Device<unsigned> wide(64);
  const auto write = [&] { *static_cast<volatile int*>(x.data()) = 4; };
  CHECK(signal_of(write) == SIGSEGV);
  CHECK(signal_of([&] {
          deq_emulation::set_protection(false);
          write();
        }) == 0);
  CHECK(signal_of([&] {
          launch(1, 1, add, x.data() + 3, 4);
          cudaFree(x.data());
        }) == SIGABRT);
  CHECK(signal_of([&] {
          const cudaLaunchConfig_t config = shape(1, 64, 128);
          static_cast<void>(cudaLaunchKernelEx(&config, dynamic_bytes, wide.data()));
        }) == SIGSEGV);
  CHECK(x.host() == std::vector<int>{1, 2, 3});

  int host[3];
  CHECK(cudaMemcpy(host, x.data(), 16, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemcpy(host, x.data(), 12, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(cudaFree(x.data() + 1) == cudaErrorInvalidValue);
  int* large = nullptr;
  CHECK(cudaMalloc(&large, std::size_t{1} << 40) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
}

// Launches ----------------------------------------------------------------------------------------

TEST_CASE("launches that the hardware refuses are refused") {
  const Device<int> x(std::vector<int>{0});
  const auto run = [&](dim3 grid, dim3 block, std::size_t shared) {
    const cudaLaunchConfig_t config = shape(grid, block, shared);
    const cudaError_t error = cudaLaunchKernelEx(&config, add, x.data(), 1);
    CHECK(cudaPeekAtLastError() == error);
    CHECK(cudaGetLastError() == error);
    CHECK(cudaGetLastError() == cudaSuccess);
    return error;
  };
  CHECK(run(1, 1024, 48 << 10) == cudaSuccess);
  CHECK(run(0, 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(1, 0, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(1, 1025, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(1, dim3(32, 33), 0) == cudaErrorInvalidConfiguration);
  CHECK(run(dim3(1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(dim3(1, 1, 65536), 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(0x80000000u, 1, 0) == cudaErrorInvalidConfiguration);
  CHECK(run(1, 1, (48 << 10) + 1) == cudaErrorInvalidValue);

  const auto raise = [](int bytes) {
    return cudaFuncSetAttribute(add, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  };
  CHECK(raise((227 << 10) + 1) == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
  ok(raise(227 << 10));
  CHECK(run(1, 1, 227 << 10) == cudaSuccess);
  ok(raise(48 << 10));
  CHECK(x.host() == std::vector<int>{1025});
}

// Tensor cores ------------------------------------------------------------------------------------

namespace {

/// 1, 2, 3, 4 as the kernels start from, plus a b.
std::vector<float> product(const std::vector<float>& a, const std::vector<float>& b) {
  const std::size_t k = b.size() / 8;
  std::vector<float> d(16 * 8);
  for (std::size_t i = 0; i < 16; ++i)
    for (std::size_t j = 0; j < 8; ++j) {
      d[i * 8 + j] = static_cast<float>(1 + i / 8 * 2 + j % 2);
      for (std::size_t l = 0; l < k; ++l) d[i * 8 + j] += a[i * k + l] * b[l * 8 + j];
    }
  return d;
}

}  // namespace

TEST_CASE("a warp multiplies matrices") {
  // Integers this small leave no room for rounding.
  Noise random(2);
  const auto matrix = [&](std::size_t n) {
    std::vector<float> x(n);
    for (float& xi : x) xi = static_cast<float>(random.below(129)) - 64;
    return x;
  };
  const Device<float> d(16 * 8);
  for_each_order([&] {
    std::vector<float> a = matrix(16 * 8), b = matrix(8 * 8);
    for (float& bi : b) bi = bi == 0 ? 1 : bi;  // 0 with more bits set is not a multiple of 1.
    launch(1, 32, multiply_tf32, Device<float>(a).data(), Device<float>(b).data(), d.data());
    CHECK(d.host() == product(a, b));
    a = matrix(16 * 16), b = matrix(16 * 8);
    launch(1, 32, multiply_bf16, Device<float>(a).data(), Device<float>(b).data(), d.data());
    CHECK(d.host() == product(a, b));
  });

  std::vector<std::uint16_t> rows(32 * 8);
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<std::uint16_t>(i);
  const Device<std::uint16_t> in(rows);
  const Device<unsigned> out(32 * 8);
  launch(1, 32, load_matrices, in.data(), out.data());
  const std::vector<unsigned> r = out.host();
  const auto element = [](unsigned m, unsigned i, unsigned j) { return 64 * m + 8 * i + j; };
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned i = lane / 4, j = lane % 4 * 2;
      CHECK(r[lane * 8 + m] == (element(m, i, j + 1) << 16 | element(m, i, j)));
      CHECK(r[lane * 8 + 4 + m] == (element(m, j + 1, i) << 16 | element(m, j, i)));
    }
}

TEST_CASE("operands of tensor cores are rounded as CUDA rounds them") {
  using deq_emulation::pack_bf16, deq_emulation::to_tf32;
  const float ulp = 0x1p-10f, inf = INFINITY;
  CHECK(__uint_as_float(to_tf32(1 + ulp / 2)) == 1 + ulp);  // A tie goes away from 0.
  CHECK(__uint_as_float(to_tf32(-1 - ulp / 2)) == -1 - ulp);
  CHECK(__uint_as_float(to_tf32(1 + ulp * 0.499f)) == 1);
  CHECK(__uint_as_float(to_tf32(inf)) == inf);
  CHECK(std::isnan(__uint_as_float(to_tf32(NAN))));
  CHECK(pack_bf16(1, -2) == 0xc0003f80);
  CHECK(pack_bf16(1 + 0x1p-8f, 1 + 3 * 0x1p-8f) == 0x3f823f80);  // A tie goes to the even one.
  CHECK(pack_bf16(inf, NAN) == 0x7fff7f80);
}

// Graphs ------------------------------------------------------------------------------------------

TEST_CASE("a graph with a WHILE node in the middle of a capture") {
  cudaStream_t stream;
  ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Device<int> x(std::vector<int>{3}), left(std::vector<int>{4}), rounds(std::vector<int>{0});
  const cudaLaunchConfig_t config = shape(1, 1, 0, stream);

  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ok(cudaLaunchKernelEx(&config, add, x.data(), 2));
  cudaStreamCaptureStatus status;
  cudaGraph_t graph;
  const cudaGraphNode_t* dependencies;
  std::size_t count;
  ok(cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &dependencies, nullptr, &count));
  REQUIRE(status == cudaStreamCaptureStatusActive);
  REQUIRE(count == 1);
  cudaGraphConditionalHandle again;
  ok(cudaGraphConditionalHandleCreate(&again, graph, 1, cudaGraphCondAssignDefault));
  cudaGraphNodeParams parameters{};
  parameters.type = cudaGraphNodeTypeConditional;
  parameters.conditional.handle = again;
  parameters.conditional.type = cudaGraphCondTypeWhile;
  parameters.conditional.size = 1;
  cudaGraphNode_t node;
  ok(cudaGraphAddNode(&node, graph, dependencies, nullptr, count, &parameters));
  ok(cudaStreamUpdateCaptureDependencies(stream, &node, nullptr, 1,
                                         cudaStreamSetCaptureDependencies));
  ok(cudaLaunchKernelEx(&config, add, x.data(), 1));
  int result = 0;
  ok(cudaMemcpyAsync(&result, x.data(), sizeof(int), cudaMemcpyDeviceToHost, stream));
  ok(cudaStreamEndCapture(stream, &graph));

  cudaGraph_t body = parameters.conditional.phGraph_out[0], same;
  ok(cudaStreamBeginCaptureToGraph(stream, body, nullptr, nullptr, 0,
                                   cudaStreamCaptureModeThreadLocal));
  ok(cudaLaunchKernelEx(&config, double_it, x.data()));
  ok(cudaLaunchKernelEx(&config, count_down, again, left.data(), rounds.data()));
  CHECK(cudaMemcpyAsync(&result, x.data(), sizeof(int), cudaMemcpyDeviceToHost, stream) ==
        cudaErrorInvalidValue);
  ok(cudaStreamEndCapture(stream, &same));
  CHECK(same == body);

  cudaGraphExec_t executable;
  ok(cudaGraphInstantiate(&executable, graph));
  ok(cudaGraphDestroy(graph));
  CHECK(x.host() == std::vector<int>{3});  // Nothing has run so far.
  for_each_order([&] {
    ok(cudaMemset(x.data(), 0, sizeof(int)));
    ok(cudaMemset(left.data(), 0, sizeof(int)));
    ok(cudaMemset(rounds.data(), 0, sizeof(int)));
    launch(1, 1, add, left.data(), 4);
    ok(cudaGraphLaunch(executable, stream));
    ok(cudaStreamSynchronize(stream));
    CHECK(result == 2 * 16 + 1);
    CHECK(rounds.host() == std::vector<int>{4});
  });
  ok(cudaGraphExecDestroy(executable));
  ok(cudaStreamDestroy(stream));
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);
}

TEST_CASE("graph nodes without a dependency run in any order") {
  cudaStream_t stream;
  ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Device<int> x(1);
  const cudaLaunchConfig_t config = shape(1, 1, 0, stream);
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  ok(cudaLaunchKernelEx(&config, add, x.data(), 1));
  ok(cudaStreamUpdateCaptureDependencies(stream, nullptr, nullptr, 0,
                                         cudaStreamSetCaptureDependencies));
  ok(cudaLaunchKernelEx(&config, double_it, x.data()));
  cudaGraph_t graph;
  ok(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  ok(cudaGraphInstantiate(&executable, graph));
  const auto run = [&](Order order) {
    deq_emulation::set_order(order);
    ok(cudaMemset(x.data(), 0, sizeof(int)));
    ok(cudaGraphLaunch(executable, stream));
    deq_emulation::set_order(Order::forward);
    return x.host()[0];
  };
  CHECK(run(Order::forward) == 2);
  CHECK(run(Order::backward) == 1);
  ok(cudaGraphExecDestroy(executable));
  ok(cudaGraphDestroy(graph));
  ok(cudaStreamDestroy(stream));
}

TEST_CASE("what a capture cannot hold spoils it") {
  cudaStream_t stream;
  ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  void* block = nullptr;
  const auto spoil = [&](auto call) {
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    CHECK(call() == cudaErrorStreamCaptureUnsupported);
    cudaStreamCaptureStatus status;
    ok(cudaStreamIsCapturing(stream, &status));
    CHECK(status == cudaStreamCaptureStatusInvalidated);
    cudaGraph_t graph;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated);
    CHECK(graph == nullptr);
    CHECK(cudaGetLastError() == cudaErrorStreamCaptureInvalidated);
    ok(cudaStreamIsCapturing(stream, &status));
    CHECK(status == cudaStreamCaptureStatusNone);
  };
  spoil([&] { return cudaStreamSynchronize(stream); });
  spoil([&] { return cudaDeviceSynchronize(); });
  spoil([&] { return cudaMalloc(&block, 16); });
  spoil([&] { return cudaMallocAsync(&block, 16, stream); });
  CHECK(cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeThreadLocal) ==
        cudaErrorStreamCaptureUnsupported);
  CHECK(cudaGetLastError() == cudaErrorStreamCaptureUnsupported);
  ok(cudaStreamDestroy(stream));
}
