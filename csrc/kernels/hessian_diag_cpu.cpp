#include "kernels/hessian_diag.h"

#include "kernels/target_clones.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(opmath_t<T>* hessian_diag, const T* grad,
                            const HessianDiagCoefficients<opmath_t<T>>& coefficients, int64_t begin, int64_t end) {
  const HessianDiagCoefficients<opmath_t<T>> c = coefficients;  // a copy: stores to hessian_diag cannot change it
  opmath_t<T>* __restrict h = hessian_diag;
  const T* __restrict g = grad;
  for (int64_t i = begin; i < end; ++i) h[i] = hessian_diag_update(h[i], to_opmath(g[i]), c);
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                            \
  template <>                                                                                               \
  TORCH_IRE_CLONES void hessian_diag_range_cpu<T>(opmath_t<T> * hessian_diag, const T* grad,                \
                                                  const HessianDiagCoefficients<opmath_t<T>>& coefficients, \
                                                  int64_t begin, int64_t end) {                             \
    range(hessian_diag, grad, coefficients, begin, end);                                                    \
  }
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
