#pragma once

#include "ops/dispatch.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_lanczos_step(const Tensor& basis, const Tensor& product, int64_t count) {
  constexpr const char* op = "lanczos_step_";
  const ScalarType basis_dtype = basis.scalar_type();
  TORCH_IRE_CHECK(
      basis_dtype == ScalarType::Float || basis_dtype == ScalarType::BFloat16 || basis_dtype == ScalarType::Double, op,
      "basis: expected dtype float32, bfloat16 or float64, got ", name_of(basis_dtype));
  const ScalarType dtype = opmath_dtype(basis_dtype);
  TORCH_IRE_CHECK(basis.dim() == 2 && (basis.size(1) <= 1 || basis.stride(1) == 1) &&
                      (basis.size(0) <= 1 || basis.stride(0) >= basis.size(1)),
                  op, "basis: expected a matrix of rows without gaps, got ", shape_of(basis));
  TORCH_IRE_CHECK(product.scalar_type() == dtype && device_name(product) == device_name(basis) && product.dim() == 1 &&
                      product.numel() == basis.size(1) && product.is_contiguous(),
                  op, "product: expected ", basis.size(1), " contiguous elements of ", name_of(dtype), " on ",
                  device_name(basis), ", got ", shape_of(product), " of ", name_of(product.scalar_type()), " on ",
                  device_name(product));
  TORCH_IRE_CHECK(count >= 1 && count <= basis.size(0), op, "count: expected 1 to ", basis.size(0), ", got ", count);
}

// Calls f(tag of the product's type, tag of the basis's type) for what check_lanczos_step lets through.
template <class F>
void dispatch_lanczos(ScalarType basis_dtype, F&& f) {
  switch (basis_dtype) {
    case ScalarType::Double: return f(type_tag<double>{}, type_tag<double>{});
    case ScalarType::BFloat16: return f(type_tag<float>{}, type_tag<bfloat16>{});
    default: return f(type_tag<float>{}, type_tag<float>{});
  }
}

}  // namespace torch_ire
