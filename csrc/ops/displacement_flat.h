#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_displacement_flat(const TensorList& params, const TensorList& previous, const TensorList& flat_masks,
                                    const OptionalTensor& kappa_tensor) {
  constexpr const char* op = "displacement_flat_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  check_masks(op, "flat_masks", flat_masks, "params", params, /*optional=*/false);
  if (kappa_tensor.has_value()) check_scalar(op, "kappa_tensor", *kappa_tensor, params[0]);
}

}  // namespace torch_ire
