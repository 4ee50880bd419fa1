#pragma once

#include <cstdint>
#include <type_traits>

#include "math/ordered_bits.h"
#include "math/score.h"

// Scores as keys: integers in the same order.
namespace torch_ire {

// The key in the precision of the score itself.
template <class T, Score score>
using score_key_t = ordered_key_t<score_t<T, score>>;

// Key of the score of x: scores of magnitude take the cheaper conversion.
template <Score score, class T>
TORCH_IRE_HD score_key_t<T, score> score_key(T x) {
  if constexpr (score == Score::value)
    return ordered_key(score_of<score>(x));
  else
    return ordered_key_of_magnitude(score_of<score>(x));
}

// Low bits that are zero in every key of a half type, because float32 has more of a mantissa; a square needs them.
template <class T, Score score>
constexpr int kEmptyKeyBits = score == Score::square        ? 0
                              : std::is_same_v<T, bfloat16> ? 16
                              : std::is_same_v<T, float16>  ? 13
                                                            : 0;

// The key without them: neighbouring numbers of the type have neighbouring keys.
template <Score score, class T>
TORCH_IRE_HD score_key_t<T, score> dense_key(T x) {
  return score_key<score>(x) >> kEmptyKeyBits<T, score>;
}
template <class T, Score score>
TORCH_IRE_HD score_t<T, score> from_dense_key(score_key_t<T, score> key) {
  constexpr score_key_t<T, score> unit = score_key_t<T, score>{1} << kEmptyKeyBits<T, score>;
  return from_ordered_key<score_t<T, score>>(key * unit);
}

// Key of the score of x among those of any number of lists. 64 bits hold the keys of float64, to which every score
// converts exactly. All NaN have one key, whatever the processor that made their payload.
template <class Key, Score score, class T>
TORCH_IRE_HD Key shared_key(T x) {
  using Wide = std::conditional_t<std::is_same_v<Key, int64_t>, double, float>;
  return ordered_key(static_cast<Wide>(score_of<score>(x)));
}

}  // namespace torch_ire
