// The keys of csrc/math/ordered_bits.h are in the order of the numbers, and come back as them.
#include "math/ordered_bits.h"

#include <cmath>
#include <initializer_list>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

template <class S>
void check_order() {
  using Limits = std::numeric_limits<S>;
  const S in_order[] = {-Limits::infinity(),  Limits::lowest(), -1, -Limits::min(), -Limits::denorm_min(), 0,
                        Limits::denorm_min(), Limits::min(),    1,  Limits::max(),  Limits::infinity()};
  const S* previous = nullptr;
  for (const S& x : in_order) {
    const double shown = static_cast<double>(x);
    CHECK(from_ordered_key<S>(ordered_key(x)) == x, "%g", shown);
    CHECK(previous == nullptr || ordered_key(*previous) < ordered_key(x), "%g", shown);
    CHECK(x < 0 || ordered_key_of_magnitude(x) == ordered_key(x), "%g", shown);
    // neighbours in floating point are neighbours as keys
    CHECK(std::isinf(x) || ordered_key(std::nextafter(x, Limits::infinity())) == ordered_key(x) + 1, "%g", shown);
    previous = &x;
  }
  CHECK(ordered_key(-S{0}) == ordered_key(S{0}), "signed zeros");
  for (const S sign : {S{1}, S{-1}}) {
    const S nan = std::copysign(Limits::quiet_NaN(), sign);
    CHECK(ordered_key(nan) > ordered_key(Limits::infinity()), "NaN");
    CHECK(ordered_key_of_magnitude(nan) > ordered_key(Limits::infinity()), "NaN");
    CHECK(std::isnan(from_ordered_key<S>(ordered_key(nan))), "NaN");
  }
}

}  // namespace

int main() {
  check_order<float>();
  check_order<double>();
}
