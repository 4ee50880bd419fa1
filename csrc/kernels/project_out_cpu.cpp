#include "kernels/instantiate.h"
#include "kernels/project_out.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void load(const T* v, int64_t count, opmath_t<T>* x) {
  for (int64_t i = 0; i < count; ++i) x[i] = to_opmath(v[i]);
}

template <class T, class B>
TORCH_IRE_INLINE void overlaps_range(const T* v, const BasisSpan<const B>& q, int64_t begin, int64_t end,
                                     double* overlaps) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    opmath_t<T> x[kSegmentElems];
    load(v + i, count, x);
    add_overlaps(q, i, count, x, overlaps);
  });
}

template <class T, class B>
TORCH_IRE_INLINE void subtract_range(const T* v, T* out, const BasisSpan<const B>& q, const opmath_t<T>* coefficients,
                                     int64_t begin, int64_t end) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    opmath_t<T> x[kSegmentElems];
    load(v + i, count, x);
    subtract_combination(q, i, count, coefficients, x);
    store_block(out, i, count, x);
  });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, B)                                                                            \
  template <>                                                                                                  \
  TORCH_IRE_CLONES void project_out_overlaps_range_cpu(const T* v, const BasisSpan<const B>& q, int64_t begin, \
                                                       int64_t end, double* overlaps) {                        \
    overlaps_range(v, q, begin, end, overlaps);                                                                \
  }                                                                                                            \
  template <>                                                                                                  \
  TORCH_IRE_CLONES void project_out_range_cpu(const T* v, T* out, const BasisSpan<const B>& q,                 \
                                              const opmath_t<T>* coefficients, int64_t begin, int64_t end) {   \
    subtract_range(v, out, q, coefficients, begin, end);                                                       \
  }
TORCH_IRE_FOR_EACH_BASIS(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
