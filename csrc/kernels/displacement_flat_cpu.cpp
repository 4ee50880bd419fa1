#include "kernels/cpu_block.h"
#include "kernels/displacement_flat.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(const DisplacementFlatSpan<T>& s, opmath_t<T> kappa, opmath_t<T> keep, int64_t begin,
                            int64_t end) {
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    uint8_t flat[kBlockElems];
    expand_mask(s.flat_mask, i, count, flat);
    T* __restrict theta = s.theta + i;
    const T* __restrict previous = s.previous + i;
    for (int64_t j = 0; j < count; ++j)
      theta[j] = round_nearest<T>::from(
          displacement_flat_step(to_opmath(theta[j]), to_opmath(previous[j]), flat[j] != 0, kappa, keep));
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
