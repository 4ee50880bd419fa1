#include "kernels/kth_value_cuda.h"

#include <torch/csrc/stable/ops.h>

#include "ops/context_cuda.h"
#include "ops/kth_value.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

// The hint is not used: the sample's bracket costs little beside the pass over the list.
Tensor kth_value_cuda(const TensorList& tensors, int64_t k, const std::string& score_name, const OptionalTensor& hint) {
  const Score score = check_kth_value(tensors, k, score_name, hint);
  const CudaContext context(tensors[0]);
  const ScalarType dtype = tensors[0].scalar_type();
  const Tensor result = torch::stable::new_empty(tensors[0], {}, score_dtype(dtype, score));
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    std::vector<KthValueSpan<T>> spans(tensors.size());
    int64_t total = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      spans[i] = {data_of<T>(tensors[i]), total, tensors[i].numel()};
      total += tensors[i].numel();
    }
    const SelectionPlan plan = plan_kth_value<T, ranked>(total);
    const Tensor workspace =
        torch::stable::new_empty(tensors[0], {kth_value_workspace<T, ranked>(plan)}, ScalarType::Byte);
    check_cuda("kth_value", launch_kth_value<T, ranked>(spans, k, plan, workspace.data_ptr(),
                                                        data_of<kth_value_t<T, ranked>>(result), context.stream()));
  });
  return result;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("kth_value", TORCH_BOX(&kth_value_cuda));
}

}  // namespace torch_ire
