#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

namespace torch_ire {

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

}  // namespace torch_ire
