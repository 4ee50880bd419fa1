#include "kernels/sam_perturb.h"

#include "kernels/target_clones.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(const SamPerturbSpan<T>& s, opmath_t<T> scale, bool adaptive, int64_t begin, int64_t end) {
  T* __restrict theta = s.theta;
  const T* __restrict grad = s.grad;
  T* __restrict backup = s.backup;
  for (int64_t i = begin; i < end; ++i) {
    const T before = theta[i];
    backup[i] = before;
    theta[i] = round_nearest<T>::from(sam_perturb_step(to_opmath(before), to_opmath(grad[i]), scale, adaptive));
  }
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                               \
  template <>                                                                                                  \
  TORCH_IRE_CLONES void sam_perturb_range_cpu(const SamPerturbSpan<T>& span, opmath_t<T> scale, bool adaptive, \
                                              int64_t begin, int64_t end) {                                    \
    range(span, scale, adaptive, begin, end);                                                                  \
  }
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
