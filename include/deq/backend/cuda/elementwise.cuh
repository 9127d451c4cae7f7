// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/cuda.cuh>
#include <deq/backend/cuda/pointwise.cuh>

namespace deq {

namespace cuda {
template <class S, int n, class Function, class... In>
__device__ Pack<S, n> map_pack(const Function& f, const Pack<In, n>&... x) {
  Pack<S, n> y;
#pragma unroll
  for (int d = 0; d < n; ++d) y.word[d] = f(x.word[d]...);
  return y;
}
template <int n, class S, class Function, class... In>
__global__ void __launch_bounds__(threads)
    elementwise_kernel(Index count, Function f, S* out, const In*... in) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x * n;
  for (Index i = thread_index() * n; i < count; i += stride)
    store_pack(out + i, map_pack<S>(f, load_pack<n>(in + i)...));
}
}  // namespace cuda

/// out[i] = f(in[i]...), i < n. `out` may be one of the inputs. f is called on the device.
template <class S, class Function, class... In>
void elementwise(Cuda<S>, Index n, Function f, S* out, const In*... in) {
  const auto map = [&](auto packs) {
    cuda::launch(cuda::grid_of(n / packs), cuda::elementwise_kernel<packs, S, Function, In...>, n,
                 f, out, in...);
  };
  cuda::with_packs_of<4>(n, map, out, in...);
}

}  // namespace deq
