#include "kernels/flat_mask_cuda.h"
#include "ops/context_cuda.h"
#include "ops/flat_mask.h"
#include "ops/library.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

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

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("flat_mask_", TORCH_BOX(&flat_mask_cuda));
}

}  // namespace torch_ire
