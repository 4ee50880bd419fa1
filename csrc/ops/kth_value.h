#pragma once

#include <string>

#include "ops/score.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator; returns what is ranked.
inline Score check_kth_value(const TensorList& tensors, int64_t k, const std::string& score,
                             const OptionalTensor& hint) {
  constexpr const char* op = "kth_value";
  check_leading_list(op, "tensors", tensors);
  if (hint.has_value()) check_score_scalar(op, "hint", *hint, tensors[0]);
  const Score parsed = parse_score(op, score);
  check_rank(op, k, tensors);
  return parsed;
}

}  // namespace torch_ire
