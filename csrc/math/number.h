#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "math/host_device.h"

// Storage types of the half formats and their conversions to and from float. They are plain bits so that this folder
// needs no header but the standard library's; a compiler turns the conversions into its machine's instructions or into
// branch-free integer code that vectorises.
namespace torch_ire {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Arithmetic is done in opmath_t and rounded once, at the store.
template <class T>
using opmath_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

TORCH_IRE_HD uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
TORCH_IRE_HD float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

template <class opmath>
TORCH_IRE_HD bool is_finite(opmath x) {
  return std::fabs(x) <= std::numeric_limits<opmath>::max();
}

TORCH_IRE_HD float to_opmath(float x) {
  return x;
}
TORCH_IRE_HD double to_opmath(double x) {
  return x;
}
TORCH_IRE_HD float to_opmath(bfloat16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}
TORCH_IRE_HD float to_opmath(float16 x) {
  // Multiplying by 2^112 moves the exponent of a normal or subnormal half to its place in float; inf and NaN need the
  // exponent set by hand.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t finite = bits_of(float_of(magnitude) * float_of(0x77800000u));
  const uint32_t infinite = magnitude | 0x7f800000u;
  return float_of(sign | (magnitude >= 0x0f800000u ? infinite : finite));
}

template <class T>
struct round_nearest;
template <>
struct round_nearest<float> {
  static TORCH_IRE_HD float from(float x) { return x; }
};
template <>
struct round_nearest<double> {
  static TORCH_IRE_HD double from(double x) { return x; }
};
// `bits` are those of the result, in 32: loops over them compare and select without changing the width of a lane.
template <>
struct round_nearest<bfloat16> {
  // Ties to even, of what is not NaN.
  static TORCH_IRE_HD uint32_t number_bits(float x) {
    const uint32_t u = bits_of(x);
    return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  }
  // A NaN stays a NaN: its payload may not carry into the exponent.
  static TORCH_IRE_HD uint32_t bits(float x) {
    const uint32_t quiet_nan = (bits_of(x) >> 16) | 0x40u;
    return x != x ? quiet_nan : number_bits(x);
  }
  static TORCH_IRE_HD bfloat16 from(float x) { return {static_cast<uint16_t>(bits(x))}; }
};
template <>
struct round_nearest<float16> {
  static TORCH_IRE_HD uint32_t number_bits(float x) { return bits(x); }
  static TORCH_IRE_HD uint32_t bits(float x) {
    const uint32_t u = bits_of(x);
    const uint32_t sign = (u >> 16) & 0x8000u;
    const uint32_t magnitude = u & 0x7fffffffu;
    // Normal range: move the exponent and round at bit 13. Subnormal range: adding 0.5 lets the float adder round at
    // bit 2^-24, ties to even.
    const uint32_t normal = (magnitude - 0x38000000u + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t h = magnitude < 0x38800000u ? subnormal : normal;
    h = magnitude >= 0x477ff000u ? 0x7c00u : h;
    h = magnitude > 0x7f800000u ? 0x7e00u : h;
    return sign | h;
  }
  static TORCH_IRE_HD float16 from(float x) { return {static_cast<uint16_t>(bits(x))}; }
};

}  // namespace torch_ire
