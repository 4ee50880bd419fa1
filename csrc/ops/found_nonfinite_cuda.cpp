#include "kernels/found_nonfinite_cuda.h"

#include <torch/csrc/stable/ops.h>

#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

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

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("found_nonfinite", TORCH_BOX(&found_nonfinite_cuda));
}

}  // namespace torch_ire
