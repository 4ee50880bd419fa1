#include "kernels/hessian_diag.h"

#include <torch/csrc/stable/library.h>

#include "ops/dispatch.h"
#include "ops/hessian_diag.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("hessian_diag_", TORCH_BOX(&hessian_diag_cpu));
}

}  // namespace torch_ire
