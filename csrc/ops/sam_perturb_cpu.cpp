#include <torch/csrc/stable/library.h>

#include "kernels/sam_perturb.h"
#include "ops/dispatch.h"
#include "ops/parallel.h"
#include "ops/sam_perturb.h"

namespace torch_ire {
namespace {

void sam_perturb_cpu(const TensorList& params, const TensorList& grads, const TensorList& backups, const Tensor& norm,
                     double rho, bool adaptive) {
  check_sam_perturb(params, grads, backups, norm);
  const double scale = sam_scale(rho, scalar_value(norm));
  dispatch_floating(params[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      const SamPerturbSpan<T> span{data_of<T>(params[i]), data_of<T>(grads[i]), data_of<T>(backups[i]),
                                   params[i].numel()};
      sam_perturb_range_cpu(span, static_cast<opmath_t<T>>(scale), adaptive, begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("sam_perturb_", TORCH_BOX(&sam_perturb_cpu));
}

}  // namespace torch_ire
