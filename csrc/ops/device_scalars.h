#pragma once

#include "kernels/device_scalar.h"
#include "ops/checks.h"

namespace torch_ire {

inline DeviceScalar device_scalar(const Tensor& tensor) {
  ScalarKind kind = ScalarKind::kFloat;
  if (tensor.scalar_type() == ScalarType::Double) kind = ScalarKind::kDouble;
  if (tensor.scalar_type() == ScalarType::BFloat16) kind = ScalarKind::kBfloat16;
  if (tensor.scalar_type() == ScalarType::Half) kind = ScalarKind::kFloat16;
  return {tensor.data_ptr(), kind, 0.0};
}

inline DeviceScalar device_scalar(const OptionalTensor& tensor, double otherwise) {
  return tensor.has_value() ? device_scalar(*tensor) : DeviceScalar{nullptr, ScalarKind::kNone, otherwise};
}

inline StepScalars step_scalars(double lr, const OptionalTensor& lr_tensor, double kappa,
                                const OptionalTensor& kappa_tensor, const OptionalTensor& grad_scale,
                                const OptionalTensor& found_inf, bool maximize) {
  return {device_scalar(lr_tensor, lr), device_scalar(kappa_tensor, kappa), device_scalar(grad_scale, 1.0),
          device_scalar(found_inf, 0.0), maximize};
}

}  // namespace torch_ire
