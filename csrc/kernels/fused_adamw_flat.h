#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"
#include "kernels/stored_param.h"
#include "math/adamw.h"
#include "math/number.h"

namespace torch_ire {

// One tensor of the list: every pointer has numel elements of the tensor's memory order.
template <class T>
struct AdamwFlatSpan {
  StoredParam<T> param;
  const T* grad;
  opmath_t<T>* exp_avg;
  opmath_t<T>* exp_avg_sq;
  const uint8_t* flat_mask;  // bit i % 8 of byte i / 8; null: no coordinate is flat
  int64_t numel;
  Rounding rounding;
  uint64_t rounding_key;  // kStochastic: mixes seed, tensor and step
};

// Coordinates [begin, end) of one tensor; begin is a multiple of 8. `grad_factor` multiplies the gradient (-1 for
// maximize, over the loss scale).
template <class T>
void fused_adamw_flat_range_cpu(const AdamwFlatSpan<T>& span, const AdamwCoefficients<opmath_t<T>>& coefficients,
                                opmath_t<T> grad_factor, int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace torch_ire
