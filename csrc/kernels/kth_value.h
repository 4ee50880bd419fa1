#pragma once

#include <cstdint>

#include "math/ordered_bits.h"
#include "math/score.h"
#include "math/selection.h"

namespace torch_ire {

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

// Writes the keys of x[begin, end) that lie strictly inside the bracket to `inside`, which has room for all of them,
// and returns how many; adds the number of keys up to the bracket's low end to `up_to_low`.
template <class T, Score score>
int64_t bracket_pass_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                               int64_t& up_to_low, score_key_t<T, score>* inside);

// Number of keys of x[begin, end) that are at most `key`.
template <class T, Score score>
int64_t count_up_to_range_cpu(const T* x, int64_t begin, int64_t end, score_key_t<T, score> key);

}  // namespace torch_ire
