#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"
#include "math/score.h"

namespace torch_ire {

// Bits [begin, end) of one tensor's mask; begin is a multiple of 8. The unused bits of the last byte are cleared.
template <class T, Score score>
void flat_mask_range_cpu(uint8_t* flat_mask, const T* scores, score_t<T, score> largest_flat, int64_t begin,
                         int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list: `scores` has numel elements of the tensor's memory order, `flat_mask` ceil(numel / 8) bytes.
template <class T>
struct FlatMaskSpan {
  uint8_t* flat_mask;
  const T* scores;
  int64_t numel;
};

// One launch up to about 890 tensors. The unused bits of the last byte are cleared. No synchronisation, no workspace.
template <class T, Score score>
cudaError_t launch_flat_mask(const std::vector<FlatMaskSpan<T>>& spans, const DeviceScalar& threshold,
                             cudaStream_t stream);

#endif

}  // namespace torch_ire
