#include "kernels/score_histogram.h"

#include "kernels/cpu_block.h"

namespace torch_ire {
namespace {

template <class T, Score score, class Key>
TORCH_IRE_INLINE void histogram(const T* x, int64_t begin, int64_t end, const KeyDigit<Key>& of, int64_t* counters) {
  const KeyDigit<Key> digit = of;
  const bool top = digit.is_top();
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    uint16_t buckets[kBlockElems];
    const T* __restrict block = x + i;
    if (top) {
      for (int64_t j = 0; j < count; ++j)
        buckets[j] = static_cast<uint16_t>(digit.top_bucket(shared_key<Key, score>(block[j])));
    } else {
      for (int64_t j = 0; j < count; ++j)
        buckets[j] = static_cast<uint16_t>(digit.inner_bucket(shared_key<Key, score>(block[j])));
    }
    for (int64_t j = 0; j < count; ++j) ++counters[buckets[j] * kCounterTurns + j % kCounterTurns];
  });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, score, Key)                                                                   \
  template <>                                                                                                  \
  TORCH_IRE_CLONES void score_histogram_range_cpu<T, score, Key>(const T* x, int64_t begin, int64_t end,       \
                                                                 const KeyDigit<Key>& of, int64_t* counters) { \
    histogram<T, score, Key>(x, begin, end, of, counters);                                                     \
  }
#define TORCH_IRE_INSTANTIATE_KEYS(T, score) \
  TORCH_IRE_INSTANTIATE(T, score, int32_t)   \
  TORCH_IRE_INSTANTIATE(T, score, int64_t)
#define TORCH_IRE_INSTANTIATE_SCORES(T)          \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::value)    \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE_KEYS(T, Score::square)
TORCH_IRE_INSTANTIATE_SCORES(float)
TORCH_IRE_INSTANTIATE_SCORES(bfloat16)
TORCH_IRE_INSTANTIATE_SCORES(float16)
TORCH_IRE_INSTANTIATE(double, Score::value, int64_t)
TORCH_IRE_INSTANTIATE(double, Score::absolute, int64_t)
TORCH_IRE_INSTANTIATE_KEYS(double, Score::square)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE_KEYS
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
