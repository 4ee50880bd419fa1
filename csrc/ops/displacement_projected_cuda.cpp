#include "kernels/displacement_projected_cuda.h"

#include "ops/basis.h"
#include "ops/context_cuda.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

void displacement_projected_cuda(const TensorList& params, const TensorList& previous, const TensorList& bases,
                                 double kappa, double decay, const OptionalTensor& gram_inverse) {
  constexpr const char* op = "displacement_projected_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  check_bases(op, "params", params, bases, gram_inverse);
  const CudaContext context(params[0]);
  const int64_t rows = bases[0].size(0);
  const Tensor workspace =
      torch::stable::new_empty(params[0], {basis_workspace(params.size(), rows)}, ScalarType::Double);
  dispatch_with_basis(params[0].scalar_type(), bases[0].scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    std::vector<DisplacementProjectedCudaSpan<T, B>> spans(params.size());
    for (size_t i = 0; i < params.size(); ++i)
      spans[i] = {data_of<T>(params[i]), data_of<T>(previous[i]), data_of<B>(bases[i]), row_stride(bases[i]),
                  params[i].numel()};
    const opmath_t<T>* gram = gram_inverse.has_value() ? data_of<opmath_t<T>>(*gram_inverse) : nullptr;
    check_cuda(op, launch_displacement_projected(spans, rows, gram, kappa, 1.0 - decay, data_of<double>(workspace),
                                                 context.stream()));
  });
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("displacement_projected_", TORCH_BOX(&displacement_projected_cuda));
}

}  // namespace torch_ire
