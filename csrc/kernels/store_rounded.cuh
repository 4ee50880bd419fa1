#pragma once

#include "kernels/multi_tensor.cuh"
#include "math/counter_rng.h"

namespace torch_ire {

// Stores elements [i, i + N) of a tensor, rounded to T: to nearest, or stochastically with the tensor's key.
template <int N, class T>
__device__ inline void store_rounded(T* out, int64_t i, const Lanes<opmath_t<T>, N>& values, bool stochastic,
                                     uint64_t key) {
  Lanes<T, N> rounded;
  TORCH_IRE_UNROLL(N)
  for (int k = 0; k < N; ++k) rounded.lane[k] = round_nearest<T>::from(values.lane[k]);
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (stochastic) {
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) rounded.lane[k] = round_stochastic(values.lane[k], random_bits(key, i + k));
    }
  }
  store_lanes<N>(out + i, rounded);
}

}  // namespace torch_ire
