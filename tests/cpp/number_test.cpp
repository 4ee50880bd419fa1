// The conversions of csrc/math/number.h against the definition of the formats, written with ldexp and rint: every half
// and bfloat16 value, and every float at which rounding changes its mind.
#include "math/number.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

struct Format {
  int exponent_bits, mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  uint32_t sign() const { return 1u << (exponent_bits + mantissa_bits); }
};
constexpr Format kHalf{5, 10};
constexpr Format kBfloat16{8, 7};

// The value of finite bits without sign.
double value_of(const Format& f, uint32_t magnitude) {
  const int exponent = static_cast<int>(magnitude >> f.mantissa_bits);
  const double mantissa = magnitude & ((1u << f.mantissa_bits) - 1);
  const double implicit = exponent > 0 ? 1u << f.mantissa_bits : 0;
  return std::ldexp(implicit + mantissa, (exponent > 0 ? exponent : 1) - f.bias() - f.mantissa_bits);
}

// Bits nearest to a float that is not NaN, ties to even. The float is scaled so that a unit of the format is 1.
uint32_t nearest_bits(const Format& f, float x) {
  const uint32_t sign = std::signbit(x) ? f.sign() : 0;
  const double magnitude = std::fabs(static_cast<double>(x));
  if (std::isinf(magnitude)) return sign | f.infinity();
  int exponent = magnitude > 0 ? std::ilogb(magnitude) : 1 - f.bias();
  if (exponent < 1 - f.bias()) exponent = 1 - f.bias();
  const double units = std::rint(std::ldexp(magnitude, f.mantissa_bits - exponent));
  // counted from the bits of 2^exponent, or from zero where the number is subnormal; a carry moves to the next exponent
  const uint32_t base = static_cast<uint32_t>(exponent + f.bias() - 1) << f.mantissa_bits;
  const uint32_t bits = base + static_cast<uint32_t>(units);
  return sign | (bits < f.infinity() ? bits : f.infinity());
}

template <class T>
void check_widening(const Format& f) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float wide = to_opmath(T{static_cast<uint16_t>(bits)});
    const uint32_t magnitude = bits & ~f.sign();
    CHECK(std::signbit(wide) == ((bits & f.sign()) != 0), "bits %#x", bits);
    if (magnitude > f.infinity())
      CHECK(std::isnan(wide), "bits %#x", bits);
    else if (magnitude == f.infinity())
      CHECK(std::isinf(wide), "bits %#x", bits);
    else
      CHECK(std::fabs(static_cast<double>(wide)) == value_of(f, magnitude), "bits %#x", bits);
  }
}

template <class T>
void check_narrowing_of(const Format& f, float x) {
  const uint32_t got = round_nearest<T>::from(x).bits;
  CHECK(got == nearest_bits(f, x), "float bits %#x, got %#x, expected %#x", bits_of(x), got, nearest_bits(f, x));
}

// Between two neighbours of the format, rounding changes at the middle: there, and at the floats on either side of it
// and of both ends.
template <class T>
void check_narrowing(const Format& f) {
  for (uint32_t magnitude = 0; magnitude < f.infinity(); ++magnitude) {
    const double low = value_of(f, magnitude);
    const double high = value_of(f, magnitude + 1);  // of the largest finite: where an infinity would stand
    for (const double point : {low, low + 0.5 * (high - low), high}) {
      const float at = static_cast<float>(point);
      for (const float x : {std::nextafter(at, 0.0f), at, std::nextafter(at, std::numeric_limits<float>::infinity())}) {
        check_narrowing_of<T>(f, x);
        check_narrowing_of<T>(f, -x);
      }
    }
  }
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 9973) {
    const float x = float_of(static_cast<uint32_t>(bits));
    if (!std::isnan(x)) check_narrowing_of<T>(f, x);
  }
  check_narrowing_of<T>(f, std::numeric_limits<float>::infinity());
  check_narrowing_of<T>(f, -std::numeric_limits<float>::infinity());
}

// Every payload of a NaN that lives in the upper or the lower half of the mantissa.
template <class T>
void check_nan(const Format& f) {
  for (uint32_t payload = 1; payload < 0x800000u; payload += payload < 0x10000u ? 1 : 0x100)
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const uint32_t bits = round_nearest<T>::from(float_of(sign | 0x7f800000u | payload)).bits;
      CHECK((bits & ~f.sign()) > f.infinity(), "payload %#x became %#x", payload, bits);
    }
}

template <class T>
void check_format(const Format& f) {
  check_widening<T>(f);
  check_narrowing<T>(f);
  check_nan<T>(f);
}

}  // namespace

int main() {
  check_format<float16>(kHalf);
  check_format<bfloat16>(kBfloat16);
  CHECK(round_nearest<float>::from(0.1f) == 0.1f && to_opmath(0.1) == 0.1, "float32 and float64 are kept");
  return 0;
}
