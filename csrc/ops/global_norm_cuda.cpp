#include <torch/csrc/stable/ops.h>

#include "kernels/global_norm_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/global_norm.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

Tensor global_norm_cuda(const TensorList& tensors, const TensorList& weights) {
  check_global_norm(tensors, weights);
  const CudaContext context(tensors[0]);
  const ScalarType dtype = tensors[0].scalar_type();
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, opmath_dtype(dtype));
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<GlobalNormSpan<T>> spans(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i)
      spans[i] = {data_of<T>(tensors[i]), data_or_null<T>(weights, i), tensors[i].numel()};
    const Tensor partials =
        torch::stable::new_empty(tensors[0], {global_norm_partials<T>(tensors.size())}, ScalarType::Double);
    check_cuda("global_norm", launch_global_norm(spans, !weights.empty(), data_of<double>(partials),
                                                 data_of<opmath_t<T>>(norm), context.stream()));
  });
  return norm;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("global_norm", TORCH_BOX(&global_norm_cuda));
}

}  // namespace torch_ire
