#include <torch/csrc/stable/library.h>

#include "kernels/displacement_flat.h"
#include "ops/dispatch.h"
#include "ops/displacement_flat.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("displacement_flat_", TORCH_BOX(&displacement_flat_cpu));
}

}  // namespace torch_ire
