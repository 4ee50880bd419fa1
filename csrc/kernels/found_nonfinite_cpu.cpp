#include "kernels/found_nonfinite.h"

#include <algorithm>

#include "kernels/target_clones.h"
#include "math/nonfinite.h"

namespace torch_ire {
namespace {

template <class T>
TORCH_IRE_INLINE bool range(const T* x, int64_t begin, int64_t end) {
  magnitude_key_t<T> largest = 0;
  for (int64_t i = begin; i < end; ++i) largest = std::max(largest, magnitude_key(x[i]));
  return largest >= infinity_key<T>();
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                               \
  template <>                                                                                  \
  TORCH_IRE_CLONES bool found_nonfinite_range_cpu<T>(const T* x, int64_t begin, int64_t end) { \
    return range(x, begin, end);                                                               \
  }
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
