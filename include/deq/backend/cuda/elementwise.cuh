// SPDX-License-Identifier: MIT
#pragma once

#include <deq/backend/cuda/cuda.cuh>

namespace deq {

namespace cuda {
template <class S, class Function, class... In>
__global__ void __launch_bounds__(threads)
    elementwise_kernel(Index n, Function f, S* out, const In*... in) {
  const Index stride = static_cast<Index>(gridDim.x) * blockDim.x;
  for (Index i = thread_index(); i < n; i += stride) out[i] = f(in[i]...);
}
}  // namespace cuda

/// out[i] = f(in[i]...), i < n. `out` may be one of the inputs. f is called on the device.
template <class S, class Function, class... In>
void elementwise(Cuda<S>, Index n, Function f, S* out, const In*... in) {
  cuda::launch(cuda::grid_of(n), cuda::elementwise_kernel<S, Function, In...>, n, f, out, in...);
}

}  // namespace deq
