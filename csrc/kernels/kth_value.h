#pragma once

#include <cstdint>

#include "math/score_key.h"
#include "math/selection.h"

namespace torch_ire {

// Writes the keys of x[begin, end) that lie strictly inside the bracket to `inside`, which has room for all of them,
// and returns how many; adds the number of keys up to the bracket's low end to `up_to_low`.
template <class T, Score score>
int64_t bracket_pass_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                               int64_t& up_to_low, score_key_t<T, score>* inside);

// Number of keys of x[begin, end) that are at most `key`.
template <class T, Score score>
int64_t count_up_to_range_cpu(const T* x, int64_t begin, int64_t end, score_key_t<T, score> key);

}  // namespace torch_ire
