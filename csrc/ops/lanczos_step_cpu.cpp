#include "kernels/lanczos_step.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "ops/basis.h"
#include "ops/lanczos_step.h"

namespace torch_ire {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("lanczos_step_", TORCH_BOX(&lanczos_step_cpu));
}

}  // namespace torch_ire
