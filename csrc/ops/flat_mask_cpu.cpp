#include "kernels/flat_mask.h"

#include <torch/csrc/stable/library.h>

#include "ops/exact_selection.h"
#include "ops/flat_mask.h"

namespace torch_ire {
namespace {

void flat_mask_cpu(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                   const std::string& score_name, const std::optional<int64_t>& k) {
  const Score score = check_flat_mask(flat_masks, scores, threshold, score_name, k);
  dispatch_scores(scores[0].scalar_type(), score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    if (k.has_value()) {
      const double hint = scalar_value(threshold);
      store_score<T, ranked>(threshold, exact_selection_cpu<T, ranked>(scores, *k, hint, flat_masks));
      return;
    }
    const auto largest_flat = largest_flat_score<score_t<T, ranked>>(scalar_value(threshold));
    parallel_over_list(scores, [&](size_t i, int64_t begin, int64_t end) {
      flat_mask_range_cpu<T, ranked>(data_of<uint8_t>(flat_masks[i]), data_of<T>(scores[i]), largest_flat, begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("flat_mask_", TORCH_BOX(&flat_mask_cpu));
}

}  // namespace torch_ire
