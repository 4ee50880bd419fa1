#pragma once

#include <cstdint>

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

}  // namespace torch_ire
