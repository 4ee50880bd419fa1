#include "kernels/hessian_diag_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/hessian_diag.h"
#include "ops/library.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

void hessian_diag_cuda(const TensorList& hessian_diags, const TensorList& grads, double beta, double num_predictions,
                       const OptionalTensor& grad_scale) {
  check_hessian_diag(hessian_diags, grads, beta, num_predictions, grad_scale);
  const CudaContext context(grads[0]);
  dispatch_floating(grads[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<HessianDiagSpan<T>> spans(grads.size());
    for (size_t i = 0; i < grads.size(); ++i)
      spans[i] = {data_of<opmath_t<T>>(hessian_diags[i]), data_of<T>(grads[i]), grads[i].numel()};
    check_cuda("hessian_diag_",
               launch_hessian_diag(spans, {beta, num_predictions, device_scalar(grad_scale, 1.0)}, context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("hessian_diag_", TORCH_BOX(&hessian_diag_cuda));
}

}  // namespace torch_ire
