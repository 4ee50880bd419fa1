#include "kernels/project_out_cuda.h"

#include "ops/basis.h"
#include "ops/context_cuda.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

TensorList project_out_cuda(const TensorList& vectors, const TensorList& bases, const OptionalTensor& gram_inverse) {
  check_leading_list("project_out", "vectors", vectors);
  check_bases("project_out", "vectors", vectors, bases, gram_inverse);
  const CudaContext context(vectors[0]);
  const int64_t rows = bases[0].size(0);
  TensorList projected;
  for (const Tensor& vector : vectors) projected.push_back(torch::stable::empty_like(vector));
  const Tensor workspace =
      torch::stable::new_empty(vectors[0], {basis_workspace(vectors.size(), rows)}, ScalarType::Double);
  dispatch_with_basis(vectors[0].scalar_type(), bases[0].scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    std::vector<ProjectOutSpan<T, B>> spans(vectors.size());
    for (size_t i = 0; i < vectors.size(); ++i)
      spans[i] = {data_of<T>(vectors[i]), data_of<T>(projected[i]), data_of<B>(bases[i]), row_stride(bases[i]),
                  vectors[i].numel()};
    const opmath_t<T>* gram = gram_inverse.has_value() ? data_of<opmath_t<T>>(*gram_inverse) : nullptr;
    check_cuda("project_out", launch_project_out(spans, rows, gram, data_of<double>(workspace), context.stream()));
  });
  return projected;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("project_out", TORCH_BOX(&project_out_cuda));
}

}  // namespace torch_ire
