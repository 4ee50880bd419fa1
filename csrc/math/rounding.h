#pragma once

#include <cstdint>

#include "math/host_device.h"
#include "math/number.h"

// How a parameter p of a half type T stands for theta, a number of the arithmetic, from step to step; with round() the
// nearest value of T,
//
//   nearest:     theta = p,   p <- round(theta)
//   stochastic:  theta = p,   p <- up or down, so that its expectation is theta (counter_rng.h)
//   Kahan:       theta = p + c,   p <- round(theta),   c <- round(theta - p)      c in T
//   master:      theta = w,       p <- round(theta),   w <- theta                 w in the arithmetic
//
// p is what the model computes with, so p decides where the two have parted: a c or w that cannot belong to p, because
// somebody has written p since, counts for nothing.
namespace torch_ire {

enum class Rounding : uint8_t { kNearest, kStochastic, kKahan, kMaster };

// Formats that cannot hold every number of the arithmetic. In the others nothing is rounded, and nothing is kept.
template <class T>
constexpr bool kIsRounded = !std::is_same_v<T, opmath_t<T>>;

// theta - p for p = round(theta), of which c is the rounding; 0 where p is not finite.
template <class T>
TORCH_IRE_HD float kahan_rest(float theta, T p) {
  const float rest = theta - to_opmath(p);
  return is_finite(rest) ? rest : 0.0f;
}

// c belongs to p if it is at most half the distance to the next value. Three quarters of it are tested: half the
// distance itself would be a tie, which may round away from p.
template <class T>
TORCH_IRE_HD float kahan_value(T p, T c) {
  const float x = to_opmath(p);
  const float low = to_opmath(c);
  const bool belongs = round_nearest<T>::number_bits(x + 0.75f * low) == uint32_t{p.bits};
  return belongs && low == low ? x + low : x;
}

template <class T>
TORCH_IRE_HD float master_value(T p, float w) {
  return round_nearest<T>::bits(w) == uint32_t{p.bits} ? w : to_opmath(p);
}

}  // namespace torch_ire
