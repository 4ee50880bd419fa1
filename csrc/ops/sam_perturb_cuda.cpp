#include "kernels/sam_perturb_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/sam_perturb.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

void sam_perturb_cuda(const TensorList& params, const TensorList& grads, const TensorList& backups, const Tensor& norm,
                      double rho, bool adaptive) {
  check_sam_perturb(params, grads, backups, norm);
  const CudaContext context(params[0]);
  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<SamPerturbSpan<T>> spans(params.size());
    for (size_t i = 0; i < params.size(); ++i)
      spans[i] = {data_of<T>(params[i]), data_of<T>(grads[i]), data_of<T>(backups[i]), params[i].numel()};
    check_cuda("sam_perturb_", launch_sam_perturb(spans, {device_scalar(norm), rho, adaptive}, context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("sam_perturb_", TORCH_BOX(&sam_perturb_cuda));
}

}  // namespace torch_ire
