#pragma once

#include <string>

#include "ops/score.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator; returns what is ranked.
inline Score check_flat_mask(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                             const std::string& score, const std::optional<int64_t>& k) {
  constexpr const char* op = "flat_mask_";
  check_leading_list(op, "scores", scores);
  check_masks(op, "flat_masks", flat_masks, "scores", scores, /*optional=*/false);
  check_score_scalar(op, "threshold", threshold, scores[0]);
  const Score parsed = parse_score(op, score);
  if (k.has_value()) {
    const ScalarType dtype = score_dtype(scores[0].scalar_type(), parsed);
    TORCH_IRE_CHECK(threshold.scalar_type() == dtype, op, "threshold: expected ", name_of(dtype),
                    ", the dtype of the scores, to be written, got ", name_of(threshold.scalar_type()));
    check_rank(op, *k, scores);
  }
  return parsed;
}

}  // namespace torch_ire
