#include "kernels/lanczos_step_cuda.h"

#include <torch/csrc/stable/ops.h>

#include "ops/basis.h"
#include "ops/context_cuda.h"
#include "ops/lanczos_step.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

Tensor lanczos_step_cuda(const Tensor& basis, const Tensor& product, int64_t count) {
  check_lanczos_step(basis, product, count);
  const CudaContext context(basis);
  const Tensor result = torch::stable::new_empty(basis, {count + 1}, ScalarType::Double);
  const Tensor workspace = torch::stable::new_empty(basis, {basis_workspace(1, count + 1)}, ScalarType::Double);
  dispatch_lanczos(basis.scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    B* const rows = data_of<B>(basis);
    B* const next = count < basis.size(0) ? rows + count * row_stride(basis) : nullptr;
    check_cuda("lanczos_step_",
               launch_lanczos_step<T, B>({data_of<T>(product), rows, next, row_stride(basis), product.numel(), count},
                                         data_of<double>(result), data_of<double>(workspace), context.stream()));
  });
  return result;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("lanczos_step_", TORCH_BOX(&lanczos_step_cuda));
}

}  // namespace torch_ire
