#pragma once

// Functions of csrc/math are compiled for the host and, by nvcc, for the device.
#if defined(__CUDACC__)
#define TORCH_IRE_HD __host__ __device__ __forceinline__
#else
#define TORCH_IRE_HD inline __attribute__((always_inline))
#endif
