#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "math/host_device.h"
#include "math/number.h"

// e^x for x <= 0 in a form that compilers vectorise: x = n ln2 + r with |r| <= ln2 / 2, the Taylor polynomial of e^r,
// and 2^n put into the exponent. float: within 2 ulp, the polynomial of degree 7 leaves 5e-9. double: within 3 ulp,
// degree 13. Results below the smallest normal number are 0, so e^-inf = 0; a NaN stays a NaN.
namespace torch_ire {

TORCH_IRE_HD float exp_nonpositive(float x) {
  constexpr float lowest = -87.33654f;    // ln of the smallest normal number
  constexpr float shifter = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  const float bounded = x < lowest ? lowest : x;
  const float shifted = bounded * 1.44269504f + shifter;
  const float n = shifted - shifter;
  // ln2 in two parts, the first with so few bits that n times it is exact
  const float r = (bounded - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  const float scale = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  const float result = p * scale + scale;
  return x < lowest ? 0.0f : result;
}

TORCH_IRE_HD double exp_nonpositive(double x) {
  constexpr double lowest = -708.3964185322641;
  constexpr double shifter = 6755399441055744.0;  // 1.5 * 2^52
  const double bounded = x < lowest ? lowest : x;
  const double shifted = bounded * 1.4426950408889634 + shifter;
  const double n = shifted - shifter;
  const double r = (bounded - n * 0.69314718036912382) - n * 1.9082149292705877e-10;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * r * r + r;
  uint64_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + 0x3ff0000000000000ull;
  double scale;
  std::memcpy(&scale, &bits, sizeof scale);
  const double result = p * scale + scale;
  return x < lowest ? 0.0 : result;
}

}  // namespace torch_ire
