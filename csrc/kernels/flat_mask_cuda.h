#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/flat_mask.h"

namespace torch_ire {

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

}  // namespace torch_ire
