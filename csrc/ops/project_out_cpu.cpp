#include "kernels/project_out.h"

#include <torch/csrc/stable/library.h>

#include "ops/basis.h"

namespace torch_ire {
namespace {

TensorList project_out_cpu(const TensorList& vectors, const TensorList& bases, const OptionalTensor& gram_inverse) {
  check_leading_list("project_out", "vectors", vectors);
  check_bases("project_out", "vectors", vectors, bases, gram_inverse);
  TensorList projected;
  for (const Tensor& vector : vectors) projected.push_back(torch::stable::empty_like(vector));
  dispatch_with_basis(vectors[0].scalar_type(), bases[0].scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    const std::vector<double> overlaps =
        sum_over_chunks(vectors, bases[0].size(0), [&](size_t i, int64_t begin, int64_t end, double* out) {
          project_out_overlaps_range_cpu<T, B>(data_of<T>(vectors[i]), basis_span<B>(bases[i]), begin, end, out);
        });
    const auto coefficients = coefficients_of<opmath_t<T>>(overlaps, gram_inverse);
    parallel_over_list(vectors, [&](size_t i, int64_t begin, int64_t end) {
      project_out_range_cpu<T, B>(data_of<T>(vectors[i]), data_of<T>(projected[i]), basis_span<B>(bases[i]),
                                  coefficients.data(), begin, end);
    });
  });
  return projected;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("project_out", TORCH_BOX(&project_out_cpu));
}

}  // namespace torch_ire
