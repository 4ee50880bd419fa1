#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator.
inline void check_global_norm(const TensorList& tensors, const TensorList& weights) {
  constexpr const char* op = "global_norm";
  check_leading_list(op, "tensors", tensors);
  check_list_like(op, "weights", weights, "tensors", tensors, tensors[0].scalar_type(), /*optional=*/true);
}

}  // namespace torch_ire
