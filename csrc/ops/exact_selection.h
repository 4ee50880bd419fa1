#pragma once

#include "kernels/exact_selection.h"

#include <torch/csrc/stable/ops.h>

#include "ops/cuda_stream.h"
#include "ops/parallel.h"
#include "ops/score.h"

namespace torch_ire {

// The k-th smallest score of a list on the CPU; writes the masks of what it does not exceed, unless there are none.
template <class T, Score score>
score_t<T, score> exact_selection_cpu(const TensorList& tensors, int64_t k, const std::optional<double>& hint,
                                      const TensorList& flat_masks = {}) {
  using S = score_t<T, score>;
  std::vector<const T*> data(tensors.size());
  std::vector<uint8_t*> masks(flat_masks.size());
  for (size_t i = 0; i < tensors.size(); ++i) data[i] = data_of<T>(tensors[i]);
  for (size_t i = 0; i < flat_masks.size(); ++i) masks[i] = data_of<uint8_t>(flat_masks[i]);
  std::optional<ordered_key_t<S>> hint_key;
  if (hint.has_value()) hint_key = ordered_key(static_cast<S>(*hint));
  const Tensor workspace = torch::stable::new_empty(tensors[0], {kSelectionBytes}, ScalarType::Byte);
  const ChunkedList chunks = chunked(tensors);
  const auto parallel = [](int64_t n, int64_t grain, const auto& body) {
    torch::stable::parallel_for(0, n, grain, body);
  };
  ExactSelection<T, score, decltype(parallel)> selection(std::move(data), chunks, k, workspace.data_ptr(), parallel,
                                                         std::move(masks));
  return from_ordered_key<S>(selection.run(hint_key));
}

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace torch_ire
