// csrc/math/score.h: what is ranked, and that "flat" is "finite and not above the threshold" for any threshold.
#include "math/score.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"
#include "math/counter_rng.h"

namespace {

using namespace torch_ire;

void check_scores() {
  CHECK(score_of<Score::value>(-3.0f) == -3.0f, "value");
  CHECK(score_of<Score::absolute>(-3.0f) == 3.0f, "absolute");
  CHECK(score_of<Score::square>(-3.0f) == 9.0f, "square");
  CHECK(score_of<Score::value>(-0.1) == -0.1, "a double is ranked as a double");
  CHECK(score_of<Score::square>(0.1) == 0.1f * 0.1f, "squares are float32");
  CHECK(score_of<Score::square>(bfloat16{0x3f81}) == 1.0078125f * 1.0078125f,
        "the square of a half is not rounded to half");
}

template <class S>
bool definition(S score, double threshold) {
  const bool below = std::isnan(threshold) || static_cast<double>(score) <= threshold;
  return std::isfinite(score) && below;
}

template <class S>
void check_threshold(double threshold) {
  using limits = std::numeric_limits<S>;
  const S largest_flat = largest_flat_score<S>(threshold);
  const S near = static_cast<S>(std::isfinite(threshold) ? threshold : 0.0);
  for (const S score : {near, std::nextafter(near, limits::infinity()), std::nextafter(near, -limits::infinity()), S{0},
                        limits::max(), limits::lowest(), limits::infinity(), -limits::infinity(), limits::quiet_NaN()})
    CHECK(is_flat(score, largest_flat) == definition(score, threshold), "score %a, threshold %a",
          static_cast<double>(score), threshold);
}

template <class S>
void check_thresholds() {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double t : {0.0, -0.0, 1.0, 0.1, -0.1, 1e-50, -1e-50, 3e38, -3e38, infinity, -infinity, std::nan("")})
    check_threshold<S>(t);
  for (uint64_t i = 0; i < 100000; ++i) {
    const double size = std::ldexp(uniform_open(mix64(i)), static_cast<int>(mix64(i, 1) % 200) - 100);
    check_threshold<S>(i % 2 != 0 ? size : -size);
  }
}

}  // namespace

int main() {
  check_scores();
  check_thresholds<float>();
  check_thresholds<double>();
  return 0;
}
