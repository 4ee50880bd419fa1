#include "kernels/flat_mask.h"

#include <string>

#include "ops/cuda_stream.h"
#include "ops/device_scalars.h"
#include "ops/library.h"
#include "ops/parallel.h"
#include "ops/score.h"

namespace torch_ire {
namespace {

// Returns what is ranked.
Score check_flat_mask(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                      const std::string& score) {
  constexpr const char* op = "flat_mask_";
  check_leading_list(op, "scores", scores);
  check_masks(op, "flat_masks", flat_masks, "scores", scores, /*optional=*/false);
  check_score_scalar(op, "threshold", threshold, scores[0]);
  return parse_score(op, score);
}

void flat_mask_cpu(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                   const std::string& score_name) {
  const Score score = check_flat_mask(flat_masks, scores, threshold, score_name);
  dispatch_scores(scores[0].scalar_type(), score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    const auto largest_flat = largest_flat_score<score_t<T, ranked>>(scalar_value(threshold));
    parallel_over_list(scores, [&](size_t i, int64_t begin, int64_t end) {
      flat_mask_range_cpu<T, ranked>(data_of<uint8_t>(flat_masks[i]), data_of<T>(scores[i]), largest_flat, begin, end);
    });
  });
}

#ifdef TORCH_IRE_WITH_CUDA

void flat_mask_cuda(const TensorList& flat_masks, const TensorList& scores, const Tensor& threshold,
                    const std::string& score_name) {
  const Score score = check_flat_mask(flat_masks, scores, threshold, score_name);
  const CudaContext context(scores[0]);
  dispatch_scores(scores[0].scalar_type(), score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    std::vector<FlatMaskSpan<T>> spans(scores.size());
    for (size_t i = 0; i < scores.size(); ++i)
      spans[i] = {data_of<uint8_t>(flat_masks[i]), data_of<T>(scores[i]), scores[i].numel()};
    check_cuda("flat_mask_",
               launch_flat_mask<T, decltype(what)::score>(spans, device_scalar(threshold), context.stream()));
  });
}

#endif

}  // namespace

// bit = score is finite and score <= threshold
TORCH_IRE_OPERATOR("flat_mask_",
                   "(Tensor(a!)[] flat_masks, Tensor[] scores, Tensor threshold, *, str score=\"value\") -> ()",
                   flat_mask_cpu, flat_mask_cuda)

}  // namespace torch_ire
