#include "kernels/hessian_diag.h"

#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/device_scalars.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

void check_hessian_diag(const TensorList& hessian_diags, const TensorList& grads, double beta, double num_predictions,
                        const OptionalTensor& grad_scale) {
  constexpr const char* op = "hessian_diag_";
  check_leading_list(op, "grads", grads);
  check_list_like(op, "hessian_diags", hessian_diags, "grads", grads, opmath_dtype(grads[0].scalar_type()));
  TORCH_IRE_CHECK(beta >= 0.0 && beta <= 1.0, op, "beta: expected a number in [0, 1], got ", beta);
  TORCH_IRE_CHECK(num_predictions > 0.0, op, "num_predictions: expected a positive number, got ", num_predictions);
  if (grad_scale.has_value()) check_scalar(op, "grad_scale", *grad_scale, grads[0]);
}

void hessian_diag_cpu(const TensorList& hessian_diags, const TensorList& grads, double beta, double num_predictions,
                      const OptionalTensor& grad_scale) {
  check_hessian_diag(hessian_diags, grads, beta, num_predictions, grad_scale);
  const double grad_factor = 1.0 / scalar_or(grad_scale, 1.0);
  dispatch_floating(grads[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using opmath = opmath_t<T>;
    const HessianDiagCoefficients<opmath> coefficients{static_cast<opmath>(grad_factor),
                                                       static_cast<opmath>(num_predictions), static_cast<opmath>(beta),
                                                       static_cast<opmath>(1.0 - beta)};
    parallel_over_list(grads, [&](size_t i, int64_t begin, int64_t end) {
      hessian_diag_range_cpu<T>(data_of<opmath>(hessian_diags[i]), data_of<T>(grads[i]), coefficients, begin, end);
    });
  });
}

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// Curvature to mask. `score` says what of a tensor is ranked: "value" x, "abs" |x|, "square" x^2 rounded to float32.
// h <- beta h + (1 - beta) num_predictions (g / grad_scale)^2
TORCH_IRE_OPERATOR("hessian_diag_",
                   "(Tensor(a!)[] hessian_diags, Tensor[] grads, *, float beta, float num_predictions=1., Tensor? "
                   "grad_scale=None) -> ()",
                   hessian_diag_cpu, hessian_diag_cuda)

}  // namespace torch_ire
