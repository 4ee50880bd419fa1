// Kernels that show that the emulation executes what CUDA promises, and that it finds what CUDA does not promise.
#include "kernels/block_reduce.cuh"
#include "kernels/cuda_language.cuh"

namespace {

using torch_ire::block_sum;
using torch_ire::kFullWarp;

__global__ void sum_kernel(const float* in, int count, float* out) {
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) sum += in[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

// The same without the barrier between the warps' writes and their reader.
__global__ void sum_without_barrier_kernel(const float* in, int count, float* out) {
  TORCH_IRE_SHARED(float[32], of_warp);
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) sum += in[i];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
  // __syncthreads() is missing here
  if (threadIdx.x == 0) {
    float total = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) total += of_warp[w];
    *out = total;
  }
}

// Reverses the block's elements through dynamic shared memory; `with_barrier` says whether correctly.
__global__ void reverse_kernel(float* data, bool with_barrier) {
  TORCH_IRE_DYNAMIC_SHARED(float, buffer);
  buffer[threadIdx.x] = data[threadIdx.x];
  if (with_barrier) __syncthreads();
  data[threadIdx.x] = buffer[blockDim.x - 1 - threadIdx.x];
}

__global__ void divergent_barrier_kernel(float* data) {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __ballot_sync(kFullWarp, 1);
  }
  data[threadIdx.x] = 0;
}

__global__ void past_the_end_kernel(float* data) {
  TORCH_IRE_SHARED(float[32], buffer);
  buffer[threadIdx.x] = data[threadIdx.x];
  __syncthreads();
  const float* const first = buffer;
  data[threadIdx.x] = first[threadIdx.x + 1];
}

// Each lane's number by every collective, written side by side.
__global__ void collectives_kernel(int* out, unsigned long long* counter) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* row = out + 8 * threadIdx.x;
  row[0] = __shfl_xor_sync(kFullWarp, lane, 5);
  row[1] = __shfl_down_sync(kFullWarp, lane, 3);
  row[2] = __shfl_up_sync(kFullWarp, lane, 3);
  row[3] = __shfl_sync(kFullWarp, lane, 7);
  row[4] = static_cast<int>(__ballot_sync(kFullWarp, lane % 3 == 0));
  row[5] = __shfl_xor_sync(lane < 16 ? 0x0000ffffu : 0xffff0000u, lane, 1);
  row[6] = __any_sync(kFullWarp, lane == 31) + 2 * __all_sync(kFullWarp, lane < 32);
  __syncwarp();
  row[7] = static_cast<int>(blockIdx.x);
  atomicAdd(counter, 1ull);
}

}  // namespace

#define TORCH_IRE_EXPORT extern "C" __attribute__((visibility("default")))

TORCH_IRE_EXPORT int selftest_sum(const float* in, int count, float* out, int threads, int with_barrier) {
  TORCH_IRE_LAUNCH(with_barrier ? sum_kernel : sum_without_barrier_kernel, 1u, static_cast<unsigned>(threads), 0,
                   nullptr, in, count, out);
  return cudaGetLastError();
}
TORCH_IRE_EXPORT int selftest_reverse(float* data, int threads, int with_barrier) {
  const unsigned block = static_cast<unsigned>(threads);
  TORCH_IRE_LAUNCH(reverse_kernel, 1u, block, block * sizeof(float), nullptr, data, with_barrier != 0);
  return cudaGetLastError();
}
TORCH_IRE_EXPORT int selftest_divergent_barrier(float* data, int threads) {
  TORCH_IRE_LAUNCH(divergent_barrier_kernel, 1u, static_cast<unsigned>(threads), 0, nullptr, data);
  return cudaGetLastError();
}
TORCH_IRE_EXPORT int selftest_past_the_end(float* data) {
  TORCH_IRE_LAUNCH(past_the_end_kernel, 1u, 32u, 0, nullptr, data);
  return cudaGetLastError();
}
TORCH_IRE_EXPORT int selftest_collectives(int* out, unsigned long long* counter, int blocks, int threads) {
  TORCH_IRE_LAUNCH(collectives_kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, nullptr, out,
                   counter);
  return cudaGetLastError();
}
