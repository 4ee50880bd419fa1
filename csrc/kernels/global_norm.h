#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "math/number.h"

namespace torch_ire {

// Sum of (w x)^2 over [begin, end), in double and in an order that depends on the range alone; null weights are all
// one.
template <class T>
double sum_of_squares_range_cpu(const T* x, const T* weights, int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list: both pointers have numel elements of the tensor's memory order; null weights are all one.
template <class T>
struct GlobalNormSpan {
  const T* x;
  const T* weights;
  int64_t numel;
};

// Doubles that launch_global_norm needs as workspace for a list of that many tensors.
template <class T>
int64_t global_norm_partials(size_t num_tensors);

// The norm of the list into `norm`, one number; all spans have weights or none has. The order of the sum depends on the
// sizes alone: the same bits on every GPU. One launch up to about 890 tensors, and a small one.
template <class T>
cudaError_t launch_global_norm(const std::vector<GlobalNormSpan<T>>& spans, bool weighted, double* partials,
                               opmath_t<T>* norm, cudaStream_t stream);

#endif

}  // namespace torch_ire
