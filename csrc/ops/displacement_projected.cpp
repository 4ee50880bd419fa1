#include "kernels/displacement_projected.h"

#include "ops/basis.h"
#include "ops/cuda_stream.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

void displacement_projected_cpu(const TensorList& params, const TensorList& previous, const TensorList& bases,
                                double kappa, double decay, const OptionalTensor& gram_inverse) {
  constexpr const char* op = "displacement_projected_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  const OptionalTensor gram = check_bases(op, "params", params, bases, gram_inverse);
  if (kappa == 0.0) return;  // 0 times an infinite displacement is no change
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
    const auto coefficients = coefficients_of<opmath_t<T>>(overlaps, gram);
    parallel_over_list(params, [&](size_t i, int64_t begin, int64_t end) {
      displacement_projected_range_cpu<T, B>(span(i), basis_span<B>(bases[i]), coefficients.data(),
                                             static_cast<opmath_t<T>>(kappa), keep, begin, end);
    });
  });
}

#ifdef TORCH_IRE_WITH_CUDA

void displacement_projected_cuda(const TensorList& params, const TensorList& previous, const TensorList& bases,
                                 double kappa, double decay, const OptionalTensor& gram_inverse) {
  constexpr const char* op = "displacement_projected_";
  check_leading_list(op, "params", params);
  check_list_like(op, "previous", previous, "params", params, params[0].scalar_type());
  const OptionalTensor gram = check_bases(op, "params", params, bases, gram_inverse);
  if (kappa == 0.0) return;  // 0 times an infinite displacement is no change
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
    const opmath_t<T>* gram_data = gram.has_value() ? data_of<opmath_t<T>>(*gram) : nullptr;
    check_cuda(op, launch_displacement_projected(spans, rows, gram_data, kappa, 1.0 - decay, data_of<double>(workspace),
                                                 context.stream()));
  });
}

#endif

}  // namespace

// theta += kappa (I - Q^T Q) (theta - (1 - decay) previous); see project_out for Q.
TORCH_IRE_OPERATOR("displacement_projected_",
                   "(Tensor(a!)[] params, Tensor[] previous, Tensor[] bases, *, float kappa, float decay=0., Tensor? "
                   "gram_inverse=None) -> ()",
                   displacement_projected_cpu, displacement_projected_cuda)

}  // namespace torch_ire
