#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_lanczos_step(const Tensor& basis, const Tensor& product, int64_t count) {
  constexpr const char* op = "lanczos_step_";
  const ScalarType dtype = basis.scalar_type();
  TORCH_IRE_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                  "basis: expected dtype float32 or float64, got ", name_of(dtype));
  TORCH_IRE_CHECK(basis.dim() == 2 && basis.is_contiguous(), op, "basis: expected a contiguous matrix, got ",
                  shape_of(basis));
  TORCH_IRE_CHECK(product.scalar_type() == dtype && device_name(product) == device_name(basis) && product.dim() == 1 &&
                      product.numel() == basis.size(1) && product.is_contiguous(),
                  op, "product: expected ", basis.size(1), " contiguous elements of ", name_of(dtype), " on ",
                  device_name(basis), ", got ", shape_of(product), " of ", name_of(product.scalar_type()), " on ",
                  device_name(product));
  TORCH_IRE_CHECK(count >= 1 && count <= basis.size(0), op, "count: expected 1 to ", basis.size(0), ", got ", count);
}

}  // namespace torch_ire
