#include "kernels/sam_perturb.h"

#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/device_scalars.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

void check_sam_perturb(const TensorList& params, const TensorList& grads, const TensorList& backups,
                       const Tensor& norm) {
  constexpr const char* op = "sam_perturb_";
  check_leading_list(op, "params", params);
  const ScalarType dtype = params[0].scalar_type();
  check_list_like(op, "grads", grads, "params", params, dtype);
  check_list_like(op, "backups", backups, "params", params, dtype);
  check_scalar(op, "norm", norm, params[0]);
}

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

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// SAM. backups <- params, params += rho e(grads), e = g / norm or, adaptive, theta^2 g / norm; a norm that is not
// finite moves nothing.
TORCH_IRE_OPERATOR(
    "sam_perturb_",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] backups, Tensor norm, *, float rho, bool adaptive=False) -> ()",
    sam_perturb_cpu, sam_perturb_cuda)

}  // namespace torch_ire
