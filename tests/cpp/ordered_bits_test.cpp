// csrc/math/ordered_bits.h: integer keys stand in the order of the numbers, -0 with +0, NaN last, and lead back.
#include "math/ordered_bits.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "math/counter_rng.h"

namespace {

using namespace torch_ire;

template <class S>
S number_of(uint64_t bits) {
  S x;
  std::memcpy(&x, &bits, sizeof x);  // the low half for float, on a little-endian machine
  return x;
}

// -1, 0 or 1; the order of torch.kthvalue.
template <class S>
int order(S a, S b) {
  if (std::isnan(a) || std::isnan(b)) return static_cast<int>(std::isnan(a)) - static_cast<int>(std::isnan(b));
  return (a > b) - (a < b);
}

template <class S>
void check_pair(S a, S b) {
  const auto key_a = ordered_key(a), key_b = ordered_key(b);
  CHECK((key_a > key_b) - (key_a < key_b) == order(a, b), "%a and %a", static_cast<double>(a), static_cast<double>(b));
}

template <class S>
void check_round_trip(S x) {
  const S back = from_ordered_key<S>(ordered_key(x));
  CHECK(order(back, x) == 0, "%a became %a", static_cast<double>(x), static_cast<double>(back));
  if (std::signbit(x)) return;
  const S magnitude = from_ordered_key<S>(ordered_key_of_magnitude(x));
  CHECK(order(magnitude, x) == 0, "%a became %a", static_cast<double>(x), static_cast<double>(magnitude));
}

template <class S>
void check_type() {
  using limits = std::numeric_limits<S>;
  const S nan = limits::quiet_NaN();
  std::vector<S> marks = {-limits::infinity(),
                          limits::lowest(),
                          S{-1},
                          -limits::min(),
                          -limits::denorm_min(),
                          S{0},
                          -S{0},
                          limits::denorm_min(),
                          limits::min(),
                          S{1},
                          limits::max(),
                          limits::infinity(),
                          nan,
                          std::copysign(nan, S{-1})};
  for (const S a : marks) {
    check_round_trip(a);
    for (const S b : marks) check_pair(a, b);
  }
  // numbers with any bits, hence many NaN and subnormals, against each other and against their neighbours
  for (uint64_t i = 0; i < 200000; ++i) {
    const S a = number_of<S>(mix64(i)), b = number_of<S>(mix64(i, 1));
    check_round_trip(a);
    check_pair(a, b);
    check_pair(a, std::nextafter(a, limits::infinity()));
  }
  CHECK(ordered_key_of_magnitude(std::copysign(nan, S{-1})) > ordered_key(limits::infinity()), "NaN with a sign");
}

}  // namespace

int main() {
  check_type<float>();
  check_type<double>();
  return 0;
}
