// The buckets of csrc/math/selection.h cut the inside of every bracket into ranges that meet and do not overlap.
#include "math/selection.h"

#include <initializer_list>
#include <limits>

#include "check.h"

namespace {

using namespace torch_ire;

template <class Key>
void check_bracket(Key low, Key high) {
  const Bracket<Key> bracket{low, high};
  const long long shown_low = low;
  const long long shown_high = high;
  if (low == high || low + 1 == high) {
    CHECK(inner_width(bracket) == 0, "%lld %lld", shown_low, shown_high);
    return;
  }
  const int shift = bucket_shift(bracket);
  const int64_t last = static_cast<int64_t>((inner_width(bracket) - 1) >> shift);
  CHECK(last < kBuckets, "%lld %lld", shown_low, shown_high);
  Key next = low + 1;
  for (int64_t bucket = 0; bucket <= last; ++bucket) {
    const Bracket<Key> keys = bucket_keys(bracket, bucket, shift);
    CHECK(keys.low == next && keys.low <= keys.high, "bucket %lld of %lld %lld", static_cast<long long>(bucket),
          shown_low, shown_high);
    for (const Key key : {keys.low, keys.high}) {
      const auto offset = inner_offset(bracket, key);
      CHECK(offset < inner_width(bracket) && static_cast<int64_t>(offset >> shift) == bucket,
            "bucket %lld of %lld %lld", static_cast<long long>(bucket), shown_low, shown_high);
    }
    next = keys.high + 1;
  }
  CHECK(next == high, "%lld %lld", shown_low, shown_high);
  CHECK(!(inner_offset(bracket, low) < inner_width(bracket)), "%lld %lld", shown_low, shown_high);
  CHECK(!(inner_offset(bracket, high) < inner_width(bracket)), "%lld %lld", shown_low, shown_high);
}

template <class Key>
void check_brackets() {
  constexpr Key min = std::numeric_limits<Key>::min();
  constexpr Key max = std::numeric_limits<Key>::max();
  for (const Key low : {min, static_cast<Key>(min + 1), Key{-5000}, Key{-1}, Key{0}, Key{77}}) {
    for (const Key width : {0, 1, 2, 3, 2047, 2048, 2049, 2050, 4096, 4098, 1000003})
      check_bracket<Key>(low, low + width);
    check_bracket<Key>(low, max);
    check_bracket<Key>(low, max - 1);
  }
}

void check_sample_positions() {
  for (const int64_t n : {int64_t{40000}, int64_t{1} << 20, int64_t{1} << 40}) {
    const int64_t m = sample_size(n, 1 << 17);
    CHECK(m > 0 && m <= n && m <= 1 << 17, "%lld", static_cast<long long>(n));
    int64_t previous = -1;
    for (int64_t j = 0; j < m; ++j) {
      const int64_t first = sample_position(j, m, n, 0.0);
      const int64_t last = sample_position(j, m, n, 1.0 - 0x1p-32);
      CHECK(previous < first && first <= last && last < n, "sample %lld of %lld", static_cast<long long>(j),
            static_cast<long long>(n));
      previous = first;
    }
  }
}

}  // namespace

int main() {
  check_brackets<int32_t>();
  check_brackets<int64_t>();
  check_sample_positions();
}
