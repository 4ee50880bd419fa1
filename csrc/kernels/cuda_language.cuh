#pragma once

#include <cuda_runtime.h>

// The parts of CUDA C++ that no C++ compiler can parse, behind names. The test-only header of the same name under
// tests/cuda_emulation gives them another meaning, and with it every kernel runs on a machine without a GPU. A kernel
// uses these spellings alone, and reads its block size from blockDim: the tests launch it with other ones.

// A kernel parameter by value in constant memory, without a copy per thread; up to 32,764 bytes from CUDA 12.1 on.
#define TORCH_IRE_GRID_CONSTANT(...) const __grid_constant__ __VA_ARGS__

// One variable of shared memory a block; arrays are spelled as types: TORCH_IRE_SHARED(float[32], name).
#define TORCH_IRE_SHARED(type, name) __shared__::torch_ire::as_written<type> name
// The launch's dynamic shared memory as an array of `type`.
#define TORCH_IRE_DYNAMIC_SHARED(type, name)                      \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)

#define TORCH_IRE_PRAGMA(text) _Pragma(#text)
#define TORCH_IRE_UNROLL(count) TORCH_IRE_PRAGMA(unroll count)

// Enqueues kernel(arguments...); cudaGetLastError() has the outcome. A kernel with commas goes in parentheses.
#define TORCH_IRE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

namespace torch_ire {
template <class T>
using as_written = T;

// 2^x by the machine's instruction, to 2^-22; results below the smallest normal number are 0.
__device__ inline float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
}  // namespace torch_ire
