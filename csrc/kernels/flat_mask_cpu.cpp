#include "kernels/flat_mask.h"

#include "kernels/cpu_block.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <class T, Score score>
TORCH_IRE_INLINE void range(uint8_t* flat_mask, const T* scores, score_t<T, score> largest_flat, int64_t begin,
                            int64_t end) {
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    uint8_t flags[kBlockElems];
    const T* __restrict block = scores + i;
    for (int64_t j = 0; j < count; ++j)
      flags[j] = static_cast<uint8_t>(is_flat(score_of<score>(block[j]), largest_flat));
    int64_t padded = count;
    for (; padded % 8 != 0; ++padded) flags[padded] = 0;
    pack_flags(flags, padded, flat_mask + i / 8);
  });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, score)                                                                             \
  template <>                                                                                                       \
  TORCH_IRE_CLONES void flat_mask_range_cpu<T, score>(uint8_t* flat_mask, const T* scores,                          \
                                                      score_t<T, score> largest_flat, int64_t begin, int64_t end) { \
    range<T, score>(flat_mask, scores, largest_flat, begin, end);                                                   \
  }
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE_SCORES)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
