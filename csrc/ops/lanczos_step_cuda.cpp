#include "kernels/lanczos_step_cuda.h"

#include <torch/csrc/stable/ops.h>

#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/lanczos_step.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

template <class T>
void step(const Tensor& basis, const Tensor& product, int64_t count, double* result, double* workspace,
          cudaStream_t stream) {
  const int64_t size = product.numel();
  T* const rows = data_of<T>(basis);
  T* const next = count < basis.size(0) ? rows + count * size : nullptr;
  check_cuda("lanczos_step_",
             launch_lanczos_step<T>(rows, data_of<T>(product), next, size, count, result, workspace, stream));
}

Tensor lanczos_step_cuda(const Tensor& basis, const Tensor& product, int64_t count) {
  check_lanczos_step(basis, product, count);
  const CudaContext context(basis);
  const Tensor result = torch::stable::new_empty(basis, {count + 1}, ScalarType::Double);
  const Tensor workspace = torch::stable::new_empty(basis, {basis_workspace(1, count + 1)}, ScalarType::Double);
  if (basis.scalar_type() == ScalarType::Double)
    step<double>(basis, product, count, data_of<double>(result), data_of<double>(workspace), context.stream());
  else
    step<float>(basis, product, count, data_of<double>(result), data_of<double>(workspace), context.stream());
  return result;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("lanczos_step_", TORCH_BOX(&lanczos_step_cuda));
}

}  // namespace torch_ire
