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

// Key of the score of x among those of any number of lists. 64 bits hold the keys of float64, to which every score
// converts exactly. All NaN have one key, whatever the processor that made their payload.
template <class Key, Score score, class T>
TORCH_IRE_HD Key shared_key(T x) {
  using Wide = std::conditional_t<std::is_same_v<Key, int64_t>, double, float>;
  return ordered_key(static_cast<Wide>(score_of<score>(x)));
}

}  // namespace torch_ire
