#pragma once

#include <torch/csrc/stable/ops.h>

#include "kernels/kth_value_cuda.h"
#include "ops/context_cuda.h"
#include "ops/score.h"

namespace torch_ire {

// Writes the k-th smallest score of a list to `result`, a number of score_dtype.
template <class T, Score score>
void exact_selection_cuda(const char* op, const TensorList& tensors, int64_t k, const Tensor& result,
                          const CudaContext& context) {
  std::vector<KthValueSpan<T>> spans(tensors.size());
  int64_t total = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    spans[i] = {data_of<T>(tensors[i]), total, tensors[i].numel()};
    total += tensors[i].numel();
  }
  const SelectionPlan plan = plan_kth_value<T, score>(total);
  const Tensor workspace =
      torch::stable::new_empty(tensors[0], {kth_value_workspace<T, score>(plan)}, ScalarType::Byte);
  check_cuda(op, launch_kth_value<T, score>(spans, k, plan, workspace.data_ptr(),
                                            data_of<kth_value_t<T, score>>(result), context.stream()));
}

}  // namespace torch_ire
