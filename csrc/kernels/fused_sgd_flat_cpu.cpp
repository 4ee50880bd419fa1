#include "kernels/cpu_block.h"
#include "kernels/fused_sgd_flat.h"

namespace torch_ire {
namespace {

template <SgdMomentum kMomentum, class T>
TORCH_IRE_INLINE void range(const SgdFlatSpan<T>& s, const SgdCoefficients<opmath_t<T>>& coefficients,
                            opmath_t<T> grad_factor, int64_t begin, int64_t end) {
  const SgdCoefficients<opmath_t<T>> c = coefficients;  // a copy: stores through the span cannot change it
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    uint8_t flat[kBlockElems];
    opmath_t<T> result[kBlockElems];
    expand_mask(s.flat_mask, i, count, flat);
    const T* __restrict theta = s.theta_from + i;
    const T* __restrict grad = s.grad + i;
    opmath_t<T>* __restrict buffer = kMomentum == SgdMomentum::kNone ? nullptr : s.momentum_buffer + i;
    for (int64_t j = 0; j < count; ++j)
      result[j] =
          sgd_flat_step<kMomentum>(to_opmath(theta[j]), to_opmath(grad[j]) * grad_factor, buffer + j, flat[j] != 0, c);
    store_block(s.theta, i, count, result, s.stochastic, s.rounding_key);
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
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
