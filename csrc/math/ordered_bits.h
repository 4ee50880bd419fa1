#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "math/host_device.h"
#include "math/number.h"

// Floating-point numbers as signed integers in the same order, so that counting and radix passes compare integers. The
// order is that of torch.kthvalue: -0 equals +0 and NaN, of either sign, is greatest.
namespace torch_ire {

template <class S>
using ordered_key_t = std::conditional_t<std::is_same_v<S, double>, int64_t, int32_t>;

TORCH_IRE_HD int32_t signed_bits_of(float x) {
  int32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
TORCH_IRE_HD int64_t signed_bits_of(double x) {
  int64_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

// A float is sign and magnitude, an integer two's complement: the key is the magnitude's bits, negated where the sign
// is set, which makes one of both zeros. Integer arithmetic alone: a processor that flushes subnormals must not change
// the order.
template <class S>
TORCH_IRE_HD ordered_key_t<S> ordered_key(S x) {
  using Key = ordered_key_t<S>;
  constexpr Key largest = std::numeric_limits<Key>::max();
  const Key bits = signed_bits_of(x);
  const Key magnitude = bits & largest;
  const Key sign = bits >> (8 * sizeof(Key) - 1);  // 0 or -1
  return magnitude > signed_bits_of(std::numeric_limits<S>::infinity()) ? largest : (magnitude ^ sign) - sign;
}

// The same for numbers that are non-negative or NaN, where dropping the sign of NaN is all there is to do.
template <class S>
TORCH_IRE_HD ordered_key_t<S> ordered_key_of_magnitude(S x) {
  return signed_bits_of(x) & std::numeric_limits<ordered_key_t<S>>::max();
}

// Inverse of both; the key of any NaN gives a NaN.
template <class S>
TORCH_IRE_HD S from_ordered_key(ordered_key_t<S> key) {
  using Key = ordered_key_t<S>;
  const Key bits = key < 0 ? std::numeric_limits<Key>::min() - key : key;
  S x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace torch_ire
