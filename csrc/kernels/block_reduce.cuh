#pragma once

#include "kernels/cuda_language.cuh"

// Reductions over the threads of a block in an order that depends on the block size alone: the same bits run to run.
namespace torch_ire {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpThreads = 32;
constexpr int kMaxWarps = 32;

// combine(a, b) over the lanes of a warp, for every lane. combine is commutative, so the lanes agree to the bit.
template <class T, class Combine>
__device__ inline T warp_reduce(T value, Combine combine) {
  TORCH_IRE_UNROLL(5)
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2)
    value = combine(value, __shfl_xor_sync(kFullWarp, value, offset));
  return value;
}

// combine(a, b) over the threads of a block of whole warps, for every thread.
template <class T, class Combine>
__device__ inline T block_reduce(T value, T neutral, Combine combine) {
  TORCH_IRE_SHARED(T[kMaxWarps], of_warp);
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  value = warp_reduce(value, combine);
  __syncthreads();  // of_warp may still be read by a reduction before this one
  if (lane == 0) of_warp[warp] = value;
  __syncthreads();
  return warp_reduce(lane < warps ? of_warp[lane] : neutral, combine);
}

template <class T>
__device__ inline T block_sum(T value) {
  return block_reduce(value, T(0), [](T a, T b) { return a + b; });
}

}  // namespace torch_ire
