#pragma once

#include <cstdint>

#include "math/hessian_diag.h"
#include "math/number.h"

namespace torch_ire {

// Coordinates [begin, end) of one tensor.
template <class T>
void hessian_diag_range_cpu(opmath_t<T>* hessian_diag, const T* grad,
                            const HessianDiagCoefficients<opmath_t<T>>& coefficients, int64_t begin, int64_t end);

}  // namespace torch_ire
