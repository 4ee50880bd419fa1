// What csrc/math/rounding.h keeps of a number beside its half-precision rounding, around every finite value of both
// formats.
#include "math/rounding.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

// Half of the smallest number of the format, which a compensation cannot go below, and its significant bits.
struct Format {
  int bits;
  float floor;
};

template <class T>
float value_at(uint32_t bits) {
  return to_opmath(T{static_cast<uint16_t>(bits)});
}

template <class T>
T compensation_of(float theta, T p) {
  return round_nearest<T>::from(kahan_rest(theta, p));
}

template <class T>
void check_what_is_kept(const Format& f) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float p = value_at<T>(bits);
    const float next = value_at<T>(bits + 1);  // away from zero
    if (!is_finite(p) || !is_finite(next)) continue;
    for (const float share : {0.0f, 0.003f, 0.25f, 0.499f, 0.4999f, 0.5f, 0.501f, 0.75f, 0.999f}) {
      const float theta = p + share * (next - p);
      const T rounded = round_nearest<T>::from(theta);
      const float error = std::fabs(kahan_value(rounded, compensation_of(theta, rounded)) - theta);
      // the significand twice, the second time for what the first leaves
      CHECK(error <= std::ldexp(std::fabs(theta), -2 * f.bits) + f.floor, "%g between %#x and the next, off by %g",
            static_cast<double>(theta), bits, static_cast<double>(error));
      CHECK(master_value(rounded, theta) == theta, "%g", static_cast<double>(theta));
    }
  }
}

template <class T>
void check_strangers() {
  for (uint32_t bits = 1; bits < 0x7000; ++bits) {
    const T p{static_cast<uint16_t>(bits)};
    const float x = to_opmath(p);
    const float spacing = value_at<T>(bits + 1) - x;
    CHECK(master_value(p, x + 2.0f * spacing) == x, "copy of another weight than %#x", bits);
    CHECK(kahan_value(p, round_nearest<T>::from(1.5f * spacing)) == x, "too large for %#x", bits);
    CHECK(kahan_value(p, round_nearest<T>::from(-2.0f * spacing)) == x, "too large for %#x", bits);
  }
}

template <class T>
void check_not_finite() {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float theta : {infinity, -infinity, std::numeric_limits<float>::max()}) {
    const T p = round_nearest<T>::from(theta);
    CHECK(compensation_of(theta, p).bits == 0, "%g", static_cast<double>(theta));
    CHECK(kahan_value(p, T{0}) == to_opmath(p), "%g", static_cast<double>(theta));
    CHECK(master_value(p, theta) == theta, "%g", static_cast<double>(theta));
  }
  const T nan = round_nearest<T>::from(std::numeric_limits<float>::quiet_NaN());
  CHECK(compensation_of(std::numeric_limits<float>::quiet_NaN(), nan).bits == 0, "NaN");
  CHECK(std::isnan(kahan_value(nan, T{0})) && std::isnan(master_value(nan, 1.0f)), "NaN");
  // A copy that is not finite belongs to no finite weight, whatever the bits of its NaN.
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const T p{static_cast<uint16_t>(bits)};
    const float x = to_opmath(p);
    if (!is_finite(x)) continue;
    for (const float c : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()})
      CHECK(kahan_value(p, round_nearest<T>::from(c)) == x, "%g as the compensation of %#x", static_cast<double>(c),
            bits);
    for (const uint16_t c : {uint16_t{0x7fff}, uint16_t{0xffff}})
      CHECK(kahan_value(p, T{c}) == x, "%#x as the compensation of %#x", static_cast<unsigned>(c), bits);
    for (const uint32_t w : {0x7fffffffu, 0xffffffffu, 0x7fc00000u})
      CHECK(master_value(p, float_of(w)) == x, "%#x as the master of %#x", w, bits);
  }
}

template <class T>
void check_format(const Format& f) {
  check_what_is_kept<T>(f);
  check_strangers<T>();
  check_not_finite<T>();
}

}  // namespace

int main() {
  check_format<bfloat16>({8, 0x1p-134f});
  check_format<float16>({11, 0x1p-25f});
  return 0;
}
