#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_sam_perturb(const TensorList& params, const TensorList& grads, const TensorList& backups,
                              const Tensor& norm) {
  constexpr const char* op = "sam_perturb_";
  check_leading_list(op, "params", params);
  const ScalarType dtype = params[0].scalar_type();
  check_list_like(op, "grads", grads, "params", params, dtype);
  check_list_like(op, "backups", backups, "params", params, dtype);
  check_scalar(op, "norm", norm, params[0]);
}

}  // namespace torch_ire
