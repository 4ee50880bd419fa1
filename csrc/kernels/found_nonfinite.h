#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"

namespace torch_ire {

// Whether any element of [begin, end) is infinite or NaN.
template <class T>
bool found_nonfinite_range_cpu(const T* x, int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list: numel elements of its memory order.
template <class T>
struct FoundNonfiniteSpan {
  const T* x;
  int64_t numel;
};

// 1 into `found` where any element is infinite or NaN, else 0. One launch up to about 1000 tensors, behind a memset. No
// workspace.
template <class T>
cudaError_t launch_found_nonfinite(const std::vector<FoundNonfiniteSpan<T>>& spans, float* found, cudaStream_t stream);

#endif

}  // namespace torch_ire
