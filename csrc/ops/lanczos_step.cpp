#include "kernels/lanczos_step.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "ops/basis.h"
#include "ops/cuda_stream.h"
#include "ops/dispatch.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

void check_lanczos_step(const Tensor& basis, const Tensor& product, int64_t count) {
  constexpr const char* op = "lanczos_step_";
  const ScalarType basis_dtype = basis.scalar_type();
  TORCH_IRE_CHECK(
      basis_dtype == ScalarType::Float || basis_dtype == ScalarType::BFloat16 || basis_dtype == ScalarType::Double, op,
      "basis: expected dtype float32, bfloat16 or float64, got ", name_of(basis_dtype));
  const ScalarType dtype = opmath_dtype(basis_dtype);
  TORCH_IRE_CHECK(basis.dim() == 2 && (basis.size(1) <= 1 || basis.stride(1) == 1) &&
                      (basis.size(0) <= 1 || basis.stride(0) >= basis.size(1)),
                  op, "basis: expected a matrix of rows without gaps, got ", shape_of(basis));
  TORCH_IRE_CHECK(product.scalar_type() == dtype && device_name(product) == device_name(basis) && product.dim() == 1 &&
                      product.numel() == basis.size(1) && product.is_contiguous(),
                  op, "product: expected ", basis.size(1), " contiguous elements of ", name_of(dtype), " on ",
                  device_name(basis), ", got ", shape_of(product), " of ", name_of(product.scalar_type()), " on ",
                  device_name(product));
  TORCH_IRE_CHECK(count >= 1 && count <= basis.size(0), op, "count: expected 1 to ", basis.size(0), ", got ", count);
}

// Calls f(tag of the product's type, tag of the basis's type) for what check_lanczos_step lets through.
template <class F>
void dispatch_lanczos(ScalarType basis_dtype, F&& f) {
  switch (basis_dtype) {
    case ScalarType::Double: return f(type_tag<double>{}, type_tag<double>{});
    case ScalarType::BFloat16: return f(type_tag<float>{}, type_tag<bfloat16>{});
    default: return f(type_tag<float>{}, type_tag<float>{});
  }
}

template <class T, class B>
void step(const Tensor& basis, const Tensor& product, int64_t count, double* result) {
  T* w = data_of<T>(product);
  const BasisSpan<const B> v{data_of<B>(basis), row_stride(basis), count};
  const TensorList list{product};
  const size_t m = static_cast<size_t>(count);

  const auto first = sum_over_chunks(list, count, [&](size_t, int64_t begin, int64_t end, double* out) {
    lanczos_step_overlaps_range_cpu<T, B>(w, v, begin, end, out);
  });
  const std::vector<T> c1(first.begin(), first.end());
  const auto second = sum_over_chunks(list, count, [&](size_t, int64_t begin, int64_t end, double* out) {
    lanczos_step_subtract_range_cpu<T, B>(w, v, c1.data(), begin, end, out);
  });
  const std::vector<T> c2(second.begin(), second.end());
  const auto squares = sum_over_chunks(list, 1, [&](size_t, int64_t begin, int64_t end, double* out) {
    *out = lanczos_step_finish_range_cpu<T, B>(w, v, c2.data(), begin, end);
  });
  const double norm = std::sqrt(squares[0]);
  for (size_t r = 0; r < m; ++r) result[r] = first[r] + second[r];
  result[m] = norm;
  if (count == basis.size(0)) return;
  B* const next_row = data_of<B>(basis) + count * row_stride(basis);
  parallel_over_list(list, [&](size_t, int64_t begin, int64_t end) {
    lanczos_step_scale_range_cpu<T, B>(w, next_row, static_cast<T>(1.0 / norm), begin, end);
  });
}

Tensor lanczos_step_cpu(const Tensor& basis, const Tensor& product, int64_t count) {
  check_lanczos_step(basis, product, count);
  Tensor result = torch::stable::new_empty(basis, {count + 1}, ScalarType::Double);
  dispatch_lanczos(basis.scalar_type(), [&](auto tag, auto basis_tag) {
    using T = typename decltype(tag)::type;
    using B = typename decltype(basis_tag)::type;
    step<T, B>(basis, product, count, data_of<double>(result));
  });
  return result;
}

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// Orthogonalises `product` against the first `count` rows of `basis` twice and writes it, normalised, to the next
// row, if there is one; returns the `count` coefficients and the norm. A bfloat16 basis goes along a float32 product.
TORCH_IRE_OPERATOR("lanczos_step_", "(Tensor(a!) basis, Tensor(b!) product, *, int count) -> Tensor", lanczos_step_cpu,
                   lanczos_step_cuda)

}  // namespace torch_ire
