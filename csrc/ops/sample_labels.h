#pragma once

#include "ops/checks.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator. Rows may lie in memory in any way: logits are only read.
inline void check_sample_labels(const Tensor& logits) {
  constexpr const char* op = "sample_labels";
  TORCH_IRE_CHECK(logits.layout() == torch::headeronly::Layout::Strided, op,
                  "logits: expected a strided tensor, got a sparse or otherwise special layout");
  TORCH_IRE_CHECK(is_floating(logits.scalar_type()), op, "logits: expected float32, float64, bfloat16 or float16, got ",
                  name_of(logits.scalar_type()));
  TORCH_IRE_CHECK(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, op,
                  "logits: expected at least one class in the last dimension, got shape ", shape_of(logits));
}

}  // namespace torch_ire
