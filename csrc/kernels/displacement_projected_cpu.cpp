#include "kernels/displacement_projected.h"

#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void load_displacement(const DisplacementProjectedSpan<T>& s, opmath_t<T> keep, int64_t i,
                                        int64_t count, opmath_t<T>* x) {
  const T* __restrict theta = s.theta + i;
  const T* __restrict previous = s.previous + i;
  for (int64_t j = 0; j < count; ++j) x[j] = to_opmath(theta[j]) - keep * to_opmath(previous[j]);
}

template <class T, class B>
TORCH_IRE_INLINE void overlaps_range(const DisplacementProjectedSpan<T>& s, const BasisSpan<const B>& q,
                                     opmath_t<T> keep, int64_t begin, int64_t end, double* overlaps) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    opmath_t<T> x[kSegmentElems];
    load_displacement(s, keep, i, count, x);
    add_overlaps(q, i, count, x, overlaps);
  });
}

template <class T, class B>
TORCH_IRE_INLINE void step_range(const DisplacementProjectedSpan<T>& s, const BasisSpan<const B>& q,
                                 const opmath_t<T>* coefficients, opmath_t<T> kappa, opmath_t<T> keep, int64_t begin,
                                 int64_t end) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    opmath_t<T> x[kSegmentElems];
    load_displacement(s, keep, i, count, x);
    subtract_combination(q, i, count, coefficients, x);
    for (int64_t j = 0; j < count; ++j) x[j] = to_opmath(s.theta[i + j]) + kappa * x[j];
    store_block(s.theta, i, count, x);
  });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, B)                                                                               \
  template <>                                                                                                     \
  TORCH_IRE_CLONES void displacement_projected_overlaps_range_cpu(const DisplacementProjectedSpan<T>& span,       \
                                                                  const BasisSpan<const B>& q, opmath_t<T> keep,  \
                                                                  int64_t begin, int64_t end, double* overlaps) { \
    overlaps_range(span, q, keep, begin, end, overlaps);                                                          \
  }                                                                                                               \
  template <>                                                                                                     \
  TORCH_IRE_CLONES void displacement_projected_range_cpu(                                                         \
      const DisplacementProjectedSpan<T>& span, const BasisSpan<const B>& q, const opmath_t<T>* coefficients,     \
      opmath_t<T> kappa, opmath_t<T> keep, int64_t begin, int64_t end) {                                          \
    step_range(span, q, coefficients, kappa, keep, begin, end);                                                   \
  }
TORCH_IRE_FOR_EACH_BASIS(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
