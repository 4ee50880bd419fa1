#pragma once

#include "kernels/multi_tensor.cuh"
#include "kernels/stored_param.h"
#include "math/counter_rng.h"

namespace torch_ire {

template <int N, class T>
__device__ inline bool is_aligned(const StoredParam<T>& param) {
  return is_aligned<N>(param.theta) && is_aligned<N>(param.theta_from) && is_aligned<N>(param.compensation) &&
         is_aligned<N>(param.master);
}

// Where the steps of elements [i, i + N) of a tensor begin.
template <int N, class T>
__device__ inline Lanes<opmath_t<T>, N> load_param(const StoredParam<T>& param, Rounding rounding, int64_t i) {
  const Lanes<T, N> from = load_lanes<N>(param.theta_from + i);
  Lanes<opmath_t<T>, N> theta;
  TORCH_IRE_UNROLL(N)
  for (int k = 0; k < N; ++k) theta.lane[k] = to_opmath(from.lane[k]);
  if constexpr (kIsRounded<T>) {
    if (rounding == Rounding::kKahan) {
      const Lanes<T, N> compensation = load_lanes<N>(param.compensation + i);
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) theta.lane[k] = kahan_value(from.lane[k], compensation.lane[k]);
    } else if (rounding == Rounding::kMaster) {
      const Lanes<opmath_t<T>, N> master = load_lanes<N>(param.master + i);
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) theta.lane[k] = master_value(from.lane[k], master.lane[k]);
    }
  }
  return theta;
}

// Where they end. `key` is that of stochastic rounding.
template <int N, class T>
__device__ inline void store_param(const StoredParam<T>& param, Rounding rounding, uint64_t key, int64_t i,
                                   const Lanes<opmath_t<T>, N>& theta) {
  Lanes<T, N> rounded;
  TORCH_IRE_UNROLL(N)
  for (int k = 0; k < N; ++k) rounded.lane[k] = round_nearest<T>::from(theta.lane[k]);
  if constexpr (kIsRounded<T>) {
    if (rounding == Rounding::kKahan) {
      Lanes<T, N> compensation;
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k)
        compensation.lane[k] = round_nearest<T>::from(kahan_rest(theta.lane[k], rounded.lane[k]));
      store_lanes<N>(param.compensation + i, compensation);
    } else if (rounding == Rounding::kMaster) {
      store_lanes<N>(param.master + i, theta);
    }
  }
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (rounding == Rounding::kStochastic) {
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) rounded.lane[k] = round_stochastic(theta.lane[k], random_bits(key, i + k));
    }
  }
  store_lanes<N>(param.theta + i, rounded);
}

}  // namespace torch_ire
