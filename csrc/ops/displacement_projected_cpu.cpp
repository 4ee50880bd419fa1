#include "kernels/displacement_projected.h"

#include <torch/csrc/stable/library.h>

#include "ops/basis.h"

namespace torch_ire {
namespace {

void displacement_projected_cpu(const TensorList& params, const TensorList& previous, const TensorList& bases,
                                double kappa, double decay, const OptionalTensor& gram_inverse) {
  constexpr const char* op = "displacement_projected_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  check_bases(op, "params", params, bases, gram_inverse);
  dispatch_with_basis(params[0].scalar_type(), bases[0].scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    const auto keep = static_cast<opmath_t<T>>(1.0 - decay);
    const auto span = [&](size_t i) {
      return DisplacementProjectedSpan<T>{data_of<T>(params[i]), data_of<T>(previous[i])};
    };
    const std::vector<double> overlaps =
        sum_over_chunks(params, bases[0].size(0), [&](size_t i, int64_t begin, int64_t end, double* out) {
          displacement_projected_overlaps_range_cpu<T, B>(span(i), basis_span<B>(bases[i]), keep, begin, end, out);
        });
    const auto coefficients = coefficients_of<opmath_t<T>>(overlaps, gram_inverse);
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      displacement_projected_range_cpu<T, B>(span(i), basis_span<B>(bases[i]), coefficients.data(),
                                             static_cast<opmath_t<T>>(kappa), keep, begin, end);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("displacement_projected_", TORCH_BOX(&displacement_projected_cpu));
}

}  // namespace torch_ire
