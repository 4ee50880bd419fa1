#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/fused_adamw_flat.h"

namespace torch_ire {

// One tensor of the list on the device: AdamwFlatSpan, with the step and the key not yet read or mixed on the host.
template <class T>
struct AdamwFlatCudaSpan {
  StoredParam<T> param;
  const T* grad;
  opmath_t<T>* exp_avg;
  opmath_t<T>* exp_avg_sq;
  const uint8_t* flat_mask;  // packed bits; null: no coordinate is flat
  const float* step;         // steps taken before this one
  uint64_t rounding_key;     // kStochastic: mixed with the step
  int64_t numel;
};

struct AdamwFlatCudaParams {
  StepScalars step;
  double beta1, beta2, eps, weight_decay;
  bool amplify_weight_decay;
  Rounding rounding;
};

// One launch up to about 320 tensors; reads the steps, does not advance them. No synchronisation, no workspace.
template <class T>
cudaError_t launch_fused_adamw_flat(const std::vector<AdamwFlatCudaSpan<T>>& spans, const AdamwFlatCudaParams& params,
                                    cudaStream_t stream);

}  // namespace torch_ire
