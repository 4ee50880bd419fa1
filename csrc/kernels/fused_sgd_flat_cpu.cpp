#include "kernels/cpu_block.h"
#include "kernels/fused_sgd_flat.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <SgdMomentum kMomentum, class T>
TORCH_IRE_INLINE void range(const SgdFlatSpan<T>& s, const SgdCoefficients<opmath_t<T>>& coefficients,
                            opmath_t<T> grad_factor, int64_t begin, int64_t end) {
  const SgdCoefficients<opmath_t<T>> c = coefficients;  // a copy: stores through the span cannot change it
  const T* grad = s.grad;
  opmath_t<T>* buffer = s.momentum_buffer;
  update_range(s.param, s.rounding, s.rounding_key, s.flat_mask, begin, end,
               [=](int64_t i, opmath_t<T> theta, bool flat) TORCH_IRE_INLINE_LAMBDA {
                 return sgd_flat_step<kMomentum>(theta, to_opmath(grad[i]) * grad_factor, buffer + i, flat, c);
               });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                          \
  template <>                                                                                             \
  TORCH_IRE_CLONES void fused_sgd_flat_range_cpu(                                                         \
      const SgdFlatSpan<T>& span, const SgdCoefficients<opmath_t<T>>& coefficients, SgdMomentum momentum, \
      opmath_t<T> grad_factor, int64_t begin, int64_t end) {                                              \
    if (momentum == SgdMomentum::kNone)                                                                   \
      range<SgdMomentum::kNone>(span, coefficients, grad_factor, begin, end);                             \
    else if (momentum == SgdMomentum::kHeavyBall)                                                         \
      range<SgdMomentum::kHeavyBall>(span, coefficients, grad_factor, begin, end);                        \
    else                                                                                                  \
      range<SgdMomentum::kNesterov>(span, coefficients, grad_factor, begin, end);                         \
  }
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
