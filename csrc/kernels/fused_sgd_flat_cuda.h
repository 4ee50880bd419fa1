#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/fused_sgd_flat.h"

namespace torch_ire {

// One tensor of the list on the device: SgdFlatSpan, with the step and the key not yet read or mixed on the host.
template <class T>
struct SgdFlatCudaSpan {
  StoredParam<T> param;
  const T* grad;
  opmath_t<T>* momentum_buffer;  // null without momentum
  const uint8_t* flat_mask;      // packed bits; null: no coordinate is flat
  const float* step;             // steps taken before this one; null where nothing depends on them
  uint64_t rounding_key;         // kStochastic: mixed with the step
  int64_t numel;
};

struct SgdFlatCudaParams {
  StepScalars step;
  double momentum, dampening, weight_decay;
  Rounding rounding;
};

// One launch up to about 350 tensors; reads the steps, does not advance them. No synchronisation, no workspace.
template <class T>
cudaError_t launch_fused_sgd_flat(const std::vector<SgdFlatCudaSpan<T>>& spans, const SgdFlatCudaParams& params,
                                  SgdMomentum momentum, cudaStream_t stream);

}  // namespace torch_ire
