#include "kernels/cpu_block.h"
#include "kernels/displacement_flat.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE void range(const DisplacementFlatSpan<T>& s, opmath_t<T> kappa, opmath_t<T> keep, int64_t begin,
                            int64_t end) {
  const T* previous = s.previous;
  const StoredParam<T> param{s.theta, s.theta, nullptr, nullptr};
  update_range(param, Rounding::kNearest, /*key=*/0, s.flat_mask, begin, end,
               [=](int64_t i, opmath_t<T> theta, bool flat) TORCH_IRE_INLINE_LAMBDA {
                 return displacement_flat_step(theta, to_opmath(previous[i]), flat, kappa, keep);
               });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                            \
  template <>                                                                                               \
  TORCH_IRE_CLONES void displacement_flat_range_cpu(const DisplacementFlatSpan<T>& span, opmath_t<T> kappa, \
                                                    opmath_t<T> keep, int64_t begin, int64_t end) {         \
    range(span, kappa, keep, begin, end);                                                                   \
  }
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
