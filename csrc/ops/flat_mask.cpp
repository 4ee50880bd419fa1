#include "kernels/flat_mask.h"

#include <optional>
#include <string>

#include "ops/device_scalars.h"
#include "ops/exact_selection.h"
#include "ops/library.h"
#include "ops/score.h"

namespace torch_ire {
namespace {

// Returns what is ranked.
Score check_flat_mask(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
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

#ifdef TORCH_IRE_WITH_CUDA

void flat_mask_cuda(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                    const std::string& score_name, const std::optional<int64_t>& k) {
  const Score score = check_flat_mask(flat_masks, scores, threshold, score_name, k);
  const CudaContext context(scores[0]);
  dispatch_scores(scores[0].scalar_type(), score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    if (k.has_value()) exact_selection_cuda<T, ranked>("flat_mask_", scores, *k, threshold, context);
    std::vector<FlatMaskSpan<T>> spans(scores.size());
    for (size_t i = 0; i < scores.size(); ++i)
      spans[i] = {data_of<uint8_t>(flat_masks[i]), data_of<T>(scores[i]), scores[i].numel()};
    check_cuda("flat_mask_", launch_flat_mask<T, ranked>(spans, device_scalar(threshold), context.stream()));
  });
}

#endif

}  // namespace

// bit = score is finite and score <= threshold. With `k` the threshold is the k-th smallest score, which is written to
// `threshold`; what was there before is a guess at it.
TORCH_IRE_OPERATOR("flat_mask_",
                   "(Tensor(a!)[] flat_masks, Tensor[] scores, Tensor(b!) threshold, *, str score=\"value\", "
                   "int? k=None) -> ()",
                   flat_mask_cpu, flat_mask_cuda)

}  // namespace torch_ire
