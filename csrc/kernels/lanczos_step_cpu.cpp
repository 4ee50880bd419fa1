#include "kernels/lanczos_step.h"

namespace torch_ire {
namespace {

template <class T, class B>
TORCH_IRE_INLINE void overlaps_range(const T* w, const BasisSpan<const B>& v, int64_t begin, int64_t end,
                                     double* overlaps) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    add_overlaps(v, i, count, w + i, overlaps);
  });
}

template <class T, class B>
TORCH_IRE_INLINE void subtract_range(T* w, const BasisSpan<const B>& v, const T* coefficients, int64_t begin,
                                     int64_t end, double* overlaps) {
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    subtract_combination(v, i, count, coefficients, w + i);
    add_overlaps(v, i, count, w + i, overlaps);
  });
}

template <class T, class B>
TORCH_IRE_INLINE double finish_range(T* w, const BasisSpan<const B>& v, const T* coefficients, int64_t begin,
                                     int64_t end) {
  double total = 0.0;
  for_each_segment(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    subtract_combination(v, i, count, coefficients, w + i);
    double squares[kSegmentElems];
    for (int64_t j = 0; j < count; ++j) squares[j] = static_cast<double>(w[i + j]) * static_cast<double>(w[i + j]);
    for (int64_t j = count; j < kSegmentElems; ++j) squares[j] = 0.0;
    total += tree_sum(squares, kSegmentElems);
  });
  return total;
}

template <class T, class B>
TORCH_IRE_INLINE void scale_range(const T* __restrict w, B* __restrict row, T scale, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) row[i] = round_nearest<B>::from(w[i] * scale);
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, B)                                                                                   \
  template <>                                                                                                         \
  TORCH_IRE_CLONES void lanczos_step_overlaps_range_cpu<T, B>(const T* w, const BasisSpan<const B>& v, int64_t begin, \
                                                              int64_t end, double* overlaps) {                        \
    overlaps_range(w, v, begin, end, overlaps);                                                                       \
  }                                                                                                                   \
  template <>                                                                                                         \
  TORCH_IRE_CLONES void lanczos_step_subtract_range_cpu<T, B>(                                                        \
      T * w, const BasisSpan<const B>& v, const T* coefficients, int64_t begin, int64_t end, double* overlaps) {      \
    subtract_range(w, v, coefficients, begin, end, overlaps);                                                         \
  }                                                                                                                   \
  template <>                                                                                                         \
  TORCH_IRE_CLONES double lanczos_step_finish_range_cpu<T, B>(T * w, const BasisSpan<const B>& v,                     \
                                                              const T* coefficients, int64_t begin, int64_t end) {    \
    return finish_range(w, v, coefficients, begin, end);                                                              \
  }                                                                                                                   \
  template <>                                                                                                         \
  TORCH_IRE_CLONES void lanczos_step_scale_range_cpu<T, B>(const T* w, B* row, T scale, int64_t begin, int64_t end) { \
    scale_range(w, row, scale, begin, end);                                                                           \
  }
TORCH_IRE_INSTANTIATE(float, float)
TORCH_IRE_INSTANTIATE(float, bfloat16)
TORCH_IRE_INSTANTIATE(double, double)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
