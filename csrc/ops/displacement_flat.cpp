#include "kernels/displacement_flat.h"

#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/device_scalars.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

void check_displacement_flat(const TensorList& params, const TensorList& previous, const TensorList& flat_masks,
                             const OptionalTensor& kappa_tensor) {
  constexpr const char* op = "displacement_flat_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  check_masks(op, "flat_masks", flat_masks, "params", params, /*optional=*/false);
  if (kappa_tensor.has_value()) check_scalar(op, "kappa_tensor", *kappa_tensor, params[0]);
}

void displacement_flat_cpu(const TensorList& params, const TensorList& previous, const TensorList& flat_masks,
                           double kappa, double decay, const OptionalTensor& kappa_tensor) {
  check_displacement_flat(params, previous, flat_masks, kappa_tensor);
  const double kappa_now = scalar_or(kappa_tensor, kappa);
  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      const DisplacementFlatSpan<T> span{data_of<T>(params[i]), data_of<T>(previous[i]),
                                         data_of<uint8_t>(flat_masks[i]), params[i].numel()};
      displacement_flat_range_cpu(span, static_cast<opmath_t<T>>(kappa_now), static_cast<opmath_t<T>>(1.0 - decay),
                                  begin, end);
    });
  });
}

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// theta += kappa n (theta - (1 - decay) previous): IRE after a step that some other optimizer took from `previous`.
TORCH_IRE_OPERATOR("displacement_flat_",
                   "(Tensor(a!)[] params, Tensor[] previous, Tensor[] flat_masks, *, float kappa, float decay=0., "
                   "Tensor? kappa_tensor=None) -> ()",
                   displacement_flat_cpu, displacement_flat_cuda)

}  // namespace torch_ire
