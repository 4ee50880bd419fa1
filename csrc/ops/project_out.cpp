#include "kernels/project_out.h"

#include "ops/basis.h"
#include "ops/cuda_stream.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

TensorList project_out_cpu(const TensorList& vectors, const TensorList& bases, const OptionalTensor& gram_inverse) {
  if (vectors.empty()) return {};
  check_leading_list("project_out", "vectors", vectors);
  const OptionalTensor gram = check_bases("project_out", "vectors", vectors, bases, gram_inverse);
  TensorList projected;
  for (const Tensor& vector : vectors) projected.push_back(torch::stable::empty_like(vector));
  dispatch_with_basis(vectors[0].scalar_type(), bases[0].scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    const std::vector<double> overlaps =
        sum_over_chunks(vectors, bases[0].size(0), [&](size_t i, int64_t begin, int64_t end, double* out) {
          project_out_overlaps_range_cpu<T, B>(data_of<T>(vectors[i]), basis_span<B>(bases[i]), begin, end, out);
        });
    const auto coefficients = coefficients_of<opmath_t<T>>(overlaps, gram);
    parallel_over_list(vectors, [&](size_t i, int64_t begin, int64_t end) {
      project_out_range_cpu<T, B>(data_of<T>(vectors[i]), data_of<T>(projected[i]), basis_span<B>(bases[i]),
                                  coefficients.data(), begin, end);
    });
  });
  return projected;
}

#ifdef TORCH_IRE_WITH_CUDA

TensorList project_out_cuda(const TensorList& vectors, const TensorList& bases, const OptionalTensor& gram_inverse) {
  if (vectors.empty()) return {};
  check_leading_list("project_out", "vectors", vectors);
  const OptionalTensor gram = check_bases("project_out", "vectors", vectors, bases, gram_inverse);
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
    const opmath_t<T>* gram_data = gram.has_value() ? data_of<opmath_t<T>>(*gram) : nullptr;
    check_cuda("project_out", launch_project_out(spans, rows, gram_data, data_of<double>(workspace), context.stream()));
  });
  return projected;
}

#endif

}  // namespace

// Exact projector. `bases` holds the columns of Q that belong to each tensor, (m, numel) with the same m.
// gram_inverse = (Q Q^T)^-1 where the rows of Q are not orthonormal.
// v - Q^T Q v
TORCH_IRE_OPERATOR("project_out", "(Tensor[] vectors, Tensor[] bases, Tensor? gram_inverse=None) -> Tensor[]",
                   project_out_cpu, project_out_cuda)

}  // namespace torch_ire
