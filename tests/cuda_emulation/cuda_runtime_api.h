#pragma once

// The declarations of the CUDA runtime and the device functions that this project uses, for a host compiler and without
// a CUDA toolkit.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice = 3 };

inline cudaError_t cudaGetLastError() {
  return *emulation::failure() == '\0' ? cudaSuccess : cudaErrorLaunchFailure;
}
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorLaunchFailure";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : emulation::failure();
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

struct alignas(8) uint2 {
  unsigned int x, y;
};
struct alignas(16) uint4 {
  unsigned int x, y, z, w;
};
struct dim3 : emulation::Index {
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : emulation::Index{x_, y_, z_} {}
};

#define threadIdx (::emulation::thread_index)
#define blockIdx (::emulation::block_index)
#define blockDim (::emulation::block_dim)
#define gridDim (::emulation::grid_dim)

template <class T>
inline void __stwb(T* to, T value) {
  *to = value;
}

inline void __syncthreads() {
  emulation::block_barrier();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulation::warp_collective(emulation::Collective::kSync, mask, 0, 0);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      emulation::warp_collective(emulation::Collective::kBallot, mask, predicate != 0 ? 1 : 0, 0));
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate == 0) == 0;
}

namespace emulation {
inline unsigned lane() {
  return (thread_index.x + block_dim.x * (thread_index.y + block_dim.y * thread_index.z)) % 32;
}
template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  return from_word<T>(warp_collective(Collective::kShuffle, mask, to_word(value), source));
}
}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const unsigned w = static_cast<unsigned>(width);
  return emulation::shuffle(mask, value, emulation::lane() / w * w + static_cast<unsigned>(source) % w);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const unsigned w = static_cast<unsigned>(width), lane = emulation::lane();
  const unsigned source = lane ^ static_cast<unsigned>(bits);
  return emulation::shuffle(mask, value, source / w > lane / w ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned w = static_cast<unsigned>(width), lane = emulation::lane();
  return emulation::shuffle(mask, value, lane % w + delta < w ? lane + delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const unsigned w = static_cast<unsigned>(width), lane = emulation::lane();
  return emulation::shuffle(mask, value, lane % w >= delta ? lane - delta : lane);
}

template <class T, class U>
T atomicAdd(T* to, U value) {
  const T before = *to;
  *to = static_cast<T>(before + static_cast<T>(value));
  return before;
}
template <class T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* to, T value) {
  const T before = *to;
  *to = std::min(before, value);
  return before;
}
template <class T>
T atomicOr(T* to, T value) {
  const T before = *to;
  *to = before | value;
  return before;
}

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x));
}
