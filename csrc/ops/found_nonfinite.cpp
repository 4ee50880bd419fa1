#include "kernels/found_nonfinite.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "ops/cuda_stream.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

Tensor found_nonfinite_cpu(const TensorList& tensors) {
  check_leading_list("found_nonfinite", "tensors", tensors);
  std::atomic<bool> any{false};
  dispatch_floating(tensors[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_over_list(tensors, [&](size_t i, int64_t begin, int64_t end) {
      if (found_nonfinite_range_cpu<T>(data_of<T>(tensors[i]), begin, end)) any.store(true, std::memory_order_relaxed);
    });
  });
  Tensor found = torch::stable::new_empty(tensors[0], {}, ScalarType::Float);
  *data_of<float>(found) = any.load() ? 1.0f : 0.0f;
  return found;
}

#ifdef TORCH_IRE_WITH_CUDA

Tensor found_nonfinite_cuda(const TensorList& tensors) {
  check_leading_list("found_nonfinite", "tensors", tensors);
  const CudaContext context(tensors[0]);
  const Tensor found = torch::stable::new_empty(tensors[0], {}, ScalarType::Float);
  dispatch_floating(tensors[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<FoundNonfiniteSpan<T>> spans(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) spans[i] = {data_of<T>(tensors[i]), tensors[i].numel()};
    check_cuda("found_nonfinite", launch_found_nonfinite(spans, data_of<float>(found), context.stream()));
  });
  return found;
}

#endif

}  // namespace

// 1 where any element is infinite or NaN, else 0: what the steps take as found_inf
TORCH_IRE_OPERATOR("found_nonfinite", "(Tensor[] tensors) -> Tensor", found_nonfinite_cpu, found_nonfinite_cuda)

}  // namespace torch_ire
