#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "math/host_device.h"
#include "math/number.h"

// What of a coordinate is ranked. Squares are taken in float32 whatever the type of the coordinate, so that masks agree
// between a gradient that is kept in bfloat16 and one that is not, and every score of a coordinate but the plain value
// of a double fits 32 bits.
namespace torch_ire {

enum class Score { value, absolute, square };

template <class T, Score score>
using score_t = std::conditional_t<score == Score::square, float, opmath_t<T>>;

template <Score score, class T>
TORCH_IRE_HD score_t<T, score> score_of(T x) {
  const score_t<T, score> v = static_cast<score_t<T, score>>(to_opmath(x));
  if constexpr (score == Score::absolute) return std::fabs(v);
  if constexpr (score == Score::square) return v * v;
  return v;
}

// The largest score that is flat under `threshold`: the finite part of "score <= threshold". NaN is the threshold of a
// ranking that ran out of finite scores, so that all finite ones are flat. A threshold between two floats moves down to
// the lower one, which leaves the comparison as it was.
template <class S>
TORCH_IRE_HD S largest_flat_score(double threshold) {
  constexpr S largest = std::numeric_limits<S>::max();
  if (!(threshold < static_cast<double>(largest))) return largest;
  const S nearest = static_cast<S>(threshold);
  return static_cast<double>(nearest) > threshold ? std::nextafter(nearest, -std::numeric_limits<S>::infinity())
                                                  : nearest;
}

template <class S>
TORCH_IRE_HD bool is_flat(S score, S largest_flat) {
  return score >= std::numeric_limits<S>::lowest() && score <= largest_flat;
}

}  // namespace torch_ire
