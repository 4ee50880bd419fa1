#include "kernels/displacement_flat_cuda.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/displacement_flat.h"
#include "ops/library.h"
#include "ops/step_scalars_cuda.h"

namespace torch_ire {
namespace {

void displacement_flat_cuda(const TensorList& params, const TensorList& previous, const TensorList& flat_masks,
                            double kappa, double decay, const OptionalTensor& kappa_tensor) {
  check_displacement_flat(params, previous, flat_masks, kappa_tensor);
  const CudaContext context(params[0]);
  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<DisplacementFlatSpan<T>> spans(params.size());
    for (size_t i = 0; i < params.size(); ++i)
      spans[i] = {data_of<T>(params[i]), data_of<T>(previous[i]), data_of<uint8_t>(flat_masks[i]), params[i].numel()};
    check_cuda("displacement_flat_",
               launch_displacement_flat(spans, device_scalar(kappa_tensor, kappa), 1.0 - decay, context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("displacement_flat_", TORCH_BOX(&displacement_flat_cuda));
}

}  // namespace torch_ire
