#include "kernels/cpu_block.h"
#include "kernels/displacement_flat.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(const DisplacementFlatSpan<T>& s, opmath_t<T> kappa, opmath_t<T> keep, int64_t begin,
                            int64_t end) {
  T* theta = s.theta;
  const T* previous = s.previous;
  update_range(theta, s.flat_mask, begin, end, /*stochastic=*/false, /*key=*/0,
               [=](int64_t i, bool flat) TORCH_IRE_INLINE_LAMBDA {
                 return displacement_flat_step(to_opmath(theta[i]), to_opmath(previous[i]), flat, kappa, keep);
               });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                            \
  template <>                                                                                               \
  TORCH_IRE_CLONES void displacement_flat_range_cpu(const DisplacementFlatSpan<T>& span, opmath_t<T> kappa, \
                                                    opmath_t<T> keep, int64_t begin, int64_t end) {         \
    range(span, kappa, keep, begin, end);                                                                   \
  }
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
