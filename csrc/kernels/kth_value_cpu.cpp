#include "kernels/kth_value.h"

#include "kernels/cpu_block.h"

namespace torch_ire {
namespace {

template <class T, Score score>
TORCH_IRE_INLINE int64_t bracket_pass(const T* x, int64_t begin, int64_t end,
                                      const Bracket<score_key_t<T, score>>& bracket, int64_t& up_to_low,
                                      score_key_t<T, score>* inside) {
  using Key = score_key_t<T, score>;
  const Key low = bracket.low;
  const unsigned_key_t<Key> width = inner_width(bracket);
  int64_t found = 0;
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    uint8_t flags[kBlockElems];
    uint8_t bits[kBlockElems / 8];
    Key not_above_low = 0;
    const T* __restrict block = x + i;
    for (int64_t j = 0; j < count; ++j) {
      const Key key = score_key<score>(block[j]);
      not_above_low += static_cast<Key>(key <= low);
      flags[j] = static_cast<uint8_t>(inner_offset(bracket, key) < width);
    }
    up_to_low += not_above_low;
    const int64_t words = (count + 63) / 64;
    for (int64_t j = count; j < 64 * words; ++j) flags[j] = 0;
    pack_flags(flags, 64 * words, bits);
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word;
      std::memcpy(&word, bits + 8 * w, sizeof word);
      const T* lane = block + 64 * w;
      // A bracket from a sample leaves about one key in 64, at a place that no branch predictor can know: the first two
      // are taken without asking whether they exist.
      for (int taken = 0; taken < 2; ++taken) {
        inside[found] = score_key<score>(lane[word == 0 ? 0 : __builtin_ctzll(word)]);
        found += word != 0;
        word &= word - 1;
      }
      for (; word != 0; word &= word - 1) inside[found++] = score_key<score>(lane[__builtin_ctzll(word)]);
    }
  });
  return found;
}

template <class T, Score score>
TORCH_IRE_INLINE int64_t count_up_to(const T* x, int64_t begin, int64_t end, score_key_t<T, score> key) {
  using Key = score_key_t<T, score>;
  int64_t total = 0;
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    Key up_to = 0;
    const T* __restrict block = x + i;
    for (int64_t j = 0; j < count; ++j) up_to += static_cast<Key>(score_key<score>(block[j]) <= key);
    total += up_to;
  });
  return total;
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, score)                                                                          \
  template <>                                                                                                    \
  TORCH_IRE_CLONES int64_t bracket_pass_range_cpu<T, score>(const T* x, int64_t begin, int64_t end,              \
                                                            const Bracket<score_key_t<T, score>>& bracket,       \
                                                            int64_t& up_to_low, score_key_t<T, score>* inside) { \
    return bracket_pass<T, score>(x, begin, end, bracket, up_to_low, inside);                                    \
  }                                                                                                              \
  template <>                                                                                                    \
  TORCH_IRE_CLONES int64_t count_up_to_range_cpu<T, score>(const T* x, int64_t begin, int64_t end,               \
                                                           score_key_t<T, score> key) {                          \
    return count_up_to<T, score>(x, begin, end, key);                                                            \
  }
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_INSTANTIATE_SCORES(float)
TORCH_IRE_INSTANTIATE_SCORES(double)
TORCH_IRE_INSTANTIATE_SCORES(bfloat16)
TORCH_IRE_INSTANTIATE_SCORES(float16)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
