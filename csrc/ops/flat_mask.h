#pragma once

#include <string>

#include "ops/score.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator; returns what is ranked.
inline Score check_flat_mask(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                             const std::string& score) {
  constexpr const char* op = "flat_mask_";
  check_leading_list(op, "scores", scores);
  check_masks(op, "flat_masks", flat_masks, "scores", scores, /*optional=*/false);
  check_score_scalar(op, "threshold", threshold, scores[0]);
  return parse_score(op, score);
}

}  // namespace torch_ire
