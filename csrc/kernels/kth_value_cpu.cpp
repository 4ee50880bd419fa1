#include "kernels/kth_value.h"

#include "kernels/cpu_block.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

template <class T, Score score>
TORCH_IRE_INLINE int64_t bracket_pass(const T* x, int64_t begin, int64_t end,
                                      const Bracket<score_key_t<T, score>>& bracket_of_pass, int64_t& up_to_low,
                                      uint32_t* inside, uint8_t* flat_mask) {
  using Key = score_key_t<T, score>;
  const Bracket<Key> bracket = bracket_of_pass;
  const int shift = bucket_shift(bracket);
  const auto entry = [&](Key key, int64_t offset) TORCH_IRE_INLINE_LAMBDA {
    return gathered_entry(static_cast<uint32_t>(inner_offset(bracket, key) >> shift), static_cast<uint32_t>(offset));
  };
  int64_t found = 0;
  int64_t total_up_to_low = 0;
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    // one flag for "up to the low end", one for "below the high end"
    uint8_t low_flags[kBlockElems];
    uint8_t high_flags[kBlockElems];
    uint64_t low_bits[kBlockElems / 64];
    uint64_t high_bits[kBlockElems / 64];
    const T* __restrict block = x + i;
    for (int64_t j = 0; j < count; ++j) {
      const Key key = score_key<score>(block[j]);
      low_flags[j] = static_cast<uint8_t>(key <= bracket.low);
      high_flags[j] = static_cast<uint8_t>(key < bracket.high);
    }
    const int64_t words = (count + 63) / 64;
    for (int64_t j = count; j < 64 * words; ++j) low_flags[j] = high_flags[j] = 0;
    pack_flags(low_flags, 64 * words, reinterpret_cast<uint8_t*>(low_bits));
    pack_flags(high_flags, 64 * words, reinterpret_cast<uint8_t*>(high_bits));
    if (flat_mask != nullptr) std::memcpy(flat_mask + i / 8, low_bits, static_cast<size_t>((count + 7) / 8));
    for (int64_t w = 0; w < words; ++w) {
      total_up_to_low += __builtin_popcountll(low_bits[w]);
      uint64_t word = high_bits[w] & ~low_bits[w];
      const T* lane = block + 64 * w;
      const int64_t offset = i - begin + 64 * w;
      const uint64_t last = uint64_t{1} << (std::min<int64_t>(64, count - 64 * w) - 1);
      // A bracket from a sample leaves about one key in a hundred, at a place that no branch predictor can know: the
      // first two of a word are taken without a branch, the last lane in place of a key that is not there.
      for (int taken = 0; taken < 2; ++taken) {
        const int j = __builtin_ctzll(word | last);
        inside[found] = entry(score_key<score>(lane[j]), offset + j);
        found += word != 0;
        word &= word - 1;
      }
      for (; word != 0; word &= word - 1) {
        const int j = __builtin_ctzll(word);
        inside[found++] = entry(score_key<score>(lane[j]), offset + j);
      }
    }
  });
  up_to_low += total_up_to_low;
  return found;
}

template <class T, Score score>
TORCH_IRE_INLINE void count_ends(const T* x, int64_t begin, int64_t end,
                                 const Bracket<score_key_t<T, score>>& bracket_of_pass, int64_t& below_low,
                                 int64_t& up_to_high) {
  using Key = score_key_t<T, score>;
  const Bracket<Key> bracket = bracket_of_pass;
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    Key below = 0;
    Key up_to = 0;
    const T* __restrict block = x + i;
    for (int64_t j = 0; j < count; ++j) {
      const Key key = score_key<score>(block[j]);
      below += static_cast<Key>(key < bracket.low);
      up_to += static_cast<Key>(key <= bracket.high);
    }
    below_low += below;
    up_to_high += up_to;
  });
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T, score)                                                                          \
  template <>                                                                                                    \
  TORCH_IRE_CLONES int64_t bracket_pass_range_cpu<T, score>(                                                     \
      const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket, int64_t& up_to_low, \
      uint32_t* inside, uint8_t* flat_mask) {                                                                    \
    return bracket_pass<T, score>(x, begin, end, bracket, up_to_low, inside, flat_mask);                         \
  }                                                                                                              \
  template <>                                                                                                    \
  TORCH_IRE_CLONES void count_ends_range_cpu<T, score>(const T* x, int64_t begin, int64_t end,                   \
                                                       const Bracket<score_key_t<T, score>>& bracket,            \
                                                       int64_t& below_low, int64_t& up_to_high) {                \
    count_ends<T, score>(x, begin, end, bracket, below_low, up_to_high);                                         \
  }
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE_SCORES)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
