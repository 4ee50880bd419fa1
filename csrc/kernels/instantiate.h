#pragma once

// The types that kernels are compiled for, as lists of calls of a macro.

// M(T) for every dtype of tensors.
#define TORCH_IRE_FOR_EACH_FLOATING(M) M(float) M(double) M(bfloat16) M(float16)

// M(T, B) for every dtype T of tensors with every storage B of a basis along them.
#define TORCH_IRE_FOR_EACH_BASIS(M) \
  M(float, float)                   \
  M(float, bfloat16)                \
  M(bfloat16, float) M(bfloat16, bfloat16) M(float16, float) M(float16, bfloat16) M(double, double)
