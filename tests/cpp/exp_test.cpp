// The exponentials of csrc/math/exp.h against the long double one.
#include "math/exp.h"

#include <cmath>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

template <class S>
void check_exp(double lowest, double step, double ulps) {
  for (double at = 0.0; at > lowest; at -= step) {
    const S x = static_cast<S>(at);
    const long double expected = std::exp(static_cast<long double>(x));
    const double actual = static_cast<double>(exp_nonpositive(x));
    const long double unit = expected * std::numeric_limits<S>::epsilon();
    const double error = static_cast<double>(std::fabs(actual - expected) / unit);
    CHECK(error <= ulps, "x = %.17g, %.3g ulp apart", at, error);
  }
  constexpr S infinity = std::numeric_limits<S>::infinity();
  CHECK(exp_nonpositive(S{0}) == S{1}, "0");
  CHECK(exp_nonpositive(-infinity) == S{0}, "-inf");
  CHECK(exp_nonpositive(static_cast<S>(lowest - 1.0)) == S{0}, "below the smallest normal number");
  CHECK(std::isnan(exp_nonpositive(std::numeric_limits<S>::quiet_NaN())), "NaN");
}

}  // namespace

int main() {
  check_exp<float>(-87.33, 1.7e-5, 2.0);
  check_exp<double>(-708.3, 1.37e-4, 3.0);
}
