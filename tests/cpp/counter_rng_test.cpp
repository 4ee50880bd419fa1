// csrc/math/counter_rng.h: published values of the generator, and what stochastic rounding promises.
#include "math/counter_rng.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

// First outputs of splitmix64 from state 1234567, as its authors' reference program prints them: the state advances by
// the golden-ratio increment that mix64 adds itself.
void check_published_values() {
  const uint64_t expected[] = {6457827717110365317ull, 3203168211198807973ull, 9817491932198370423ull};
  uint64_t state = 1234567;
  for (const uint64_t value : expected) {
    CHECK(mix64(state) == value, "state %llu", static_cast<unsigned long long>(state));
    state += 0x9e3779b97f4a7c15ull;
  }
}

void check_open_interval() {
  CHECK(uniform_open(0) > 0.0, "all bits clear");
  CHECK(uniform_open(~0ull) < 1.0, "all bits set");
  CHECK(uniform_open(1ull << 63) > 0.5 && uniform_open((1ull << 63) - 1) < 0.5, "middle");
}

// Element numbers beyond 2^32 do not repeat the first ones, and nearby keys give other numbers.
void check_counters_are_told_apart() {
  for (int64_t i = 0; i < 1000; ++i) {
    CHECK(random_bits(7, i) != random_bits(7, i + (int64_t{1} << 32)), "element %lld", static_cast<long long>(i));
    CHECK(random_bits(7, i) != random_bits(8, i), "element %lld", static_cast<long long>(i));
    CHECK(random_bits(7, i) != random_bits(7 + (1ull << 32), i), "element %lld", static_cast<long long>(i));
  }
}

// Each of the 32 bits is set in half of the draws, within 5 standard deviations.
void check_bits_are_balanced() {
  constexpr int64_t kDraws = 1 << 18;
  for (int bit = 0; bit < 32; ++bit) {
    int64_t set = 0;
    for (int64_t i = 0; i < kDraws; ++i) set += (random_bits(mix64(3, 5), i) >> bit) & 1u;
    const double deviations = (static_cast<double>(set) - kDraws / 2.0) / (0.5 * std::sqrt(double{kDraws}));
    CHECK(std::fabs(deviations) < 5.0, "bit %d: %.2f standard deviations", bit, deviations);
  }
}

// Over all 2^16 values of the random half-word the mean of the results is the argument itself, exactly.
void check_expectation(float x) {
  double sum = 0;
  for (uint32_t random = 0; random < 0x10000u; ++random) sum += to_opmath(round_stochastic(x, random));
  CHECK(sum / 0x10000 == static_cast<double>(x), "%g", static_cast<double>(x));
}

void check_stochastic_rounding() {
  for (const float x : {1.0f, 1.001f, -1.003f, 3.14159f, 1e-30f, -7e20f, 0.0f, 0x1p-130f, 0x1.fffffep-1f})
    check_expectation(x);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const uint32_t random : {0u, 0xffffu, ~0u}) {
    CHECK(to_opmath(round_stochastic(infinity, random)) == infinity, "infinity");
    CHECK(to_opmath(round_stochastic(-infinity, random)) == -infinity, "-infinity");
    CHECK(std::isnan(to_opmath(round_stochastic(std::nanf(""), random))), "NaN");
    CHECK(to_opmath(round_stochastic(1.5f, random)) == 1.5f, "a bfloat16 number stays");
  }
}

}  // namespace

int main() {
  check_published_values();
  check_open_interval();
  check_counters_are_told_apart();
  check_bits_are_balanced();
  check_stochastic_rounding();
  return 0;
}
