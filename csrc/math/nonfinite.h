#pragma once

#include <limits>

#include "math/ordered_bits.h"

// Whether any of many numbers is infinite or NaN. Bits without the sign, as integers, are in the order of magnitudes,
// with infinity and the NaNs on top: the largest decides for all, and integers of the numbers' own width are compared.
namespace torch_ire {

TORCH_IRE_HD int32_t magnitude_key(float x) {
  return ordered_key_of_magnitude(x);
}
TORCH_IRE_HD int64_t magnitude_key(double x) {
  return ordered_key_of_magnitude(x);
}
TORCH_IRE_HD int16_t magnitude_key(bfloat16 x) {
  return static_cast<int16_t>(x.bits & 0x7fff);
}
TORCH_IRE_HD int16_t magnitude_key(float16 x) {
  return static_cast<int16_t>(x.bits & 0x7fff);
}

template <class T>
using magnitude_key_t = decltype(magnitude_key(T{}));

// The smallest key of a number that is not finite.
template <class T>
TORCH_IRE_HD magnitude_key_t<T> infinity_key() {
  return magnitude_key(round_nearest<T>::from(std::numeric_limits<opmath_t<T>>::infinity()));
}

}  // namespace torch_ire
