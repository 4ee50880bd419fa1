#include "kernels/fused_adamw_flat.h"

#include "kernels/cpu_block.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(const AdamwFlatSpan<T>& s, const AdamwCoefficients<opmath_t<T>>& coefficients,
                            opmath_t<T> grad_factor, int64_t begin, int64_t end) {
  const AdamwCoefficients<opmath_t<T>> c = coefficients;  // a copy: stores through the span cannot change it
  const T* grad = s.grad;
  opmath_t<T>* exp_avg = s.exp_avg;
  opmath_t<T>* exp_avg_sq = s.exp_avg_sq;
  update_range(s.param, s.rounding, s.rounding_key, s.flat_mask, begin, end,
               [=](int64_t i, opmath_t<T> theta, bool flat) TORCH_IRE_INLINE_LAMBDA {
                 return adamw_flat_step(theta, to_opmath(grad[i]) * grad_factor, exp_avg[i], exp_avg_sq[i], flat, c);
               });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                          \
  template <>                                                                                             \
  TORCH_IRE_CLONES void fused_adamw_flat_range_cpu(const AdamwFlatSpan<T>& span,                          \
                                                   const AdamwCoefficients<opmath_t<T>>& coefficients,    \
                                                   opmath_t<T> grad_factor, int64_t begin, int64_t end) { \
    range(span, coefficients, grad_factor, begin, end);                                                   \
  }
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
