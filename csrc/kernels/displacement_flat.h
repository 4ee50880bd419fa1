#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"
#include "math/displacement.h"
#include "math/number.h"

namespace torch_ire {

// One tensor of the list: theta and previous have numel elements in the same memory order, flat_mask ceil(numel / 8)
// bytes.
template <class T>
struct DisplacementFlatSpan {
  T* theta;
  const T* previous;
  const uint8_t* flat_mask;
  int64_t numel;
};

// Coordinates [begin, end) of one tensor; begin is a multiple of 8. `keep` is 1 - decay.
template <class T>
void displacement_flat_range_cpu(const DisplacementFlatSpan<T>& span, opmath_t<T> kappa, opmath_t<T> keep,
                                 int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

// `keep` is 1 - decay. One launch up to about 730 tensors. No synchronisation, no workspace.
template <class T>
cudaError_t launch_displacement_flat(const std::vector<DisplacementFlatSpan<T>>& spans, const DeviceScalar& kappa,
                                     double keep, cudaStream_t stream);

#endif

}  // namespace torch_ire
