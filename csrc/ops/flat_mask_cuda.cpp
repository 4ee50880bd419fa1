#include "kernels/flat_mask_cuda.h"
#include "ops/exact_selection_cuda.h"
#include "ops/flat_mask.h"
#include "ops/library.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

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

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("flat_mask_", TORCH_BOX(&flat_mask_cuda));
}

}  // namespace torch_ire
