#pragma once

#include <cstdint>

#include "math/number.h"
#include "math/sam.h"

namespace torch_ire {

// One tensor of the list: every pointer has numel elements of the tensor's memory order.
template <class T>
struct SamPerturbSpan {
  T* theta;
  const T* grad;
  T* backup;  // receives theta as it was
  int64_t numel;
};

// Coordinates [begin, end) of one tensor. `scale` is rho / norm, 0 where the norm is not finite.
template <class T>
void sam_perturb_range_cpu(const SamPerturbSpan<T>& span, opmath_t<T> scale, bool adaptive, int64_t begin, int64_t end);

}  // namespace torch_ire
