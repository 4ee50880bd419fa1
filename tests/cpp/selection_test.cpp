// csrc/math/selection.h: buckets divide the inner keys of a bracket without gap or overlap, samples cover all
// positions.
#include "math/selection.h"

#include <cstdio>
#include <limits>

#include "check.h"
#include "math/counter_rng.h"

namespace {

using namespace torch_ire;

template <class Key>
void check_key(const Bracket<Key>& b, int shift, Key key) {
  const int64_t bucket = static_cast<int64_t>(inner_offset(b, key) >> shift);
  CHECK(bucket < kBuckets, "bucket %lld", static_cast<long long>(bucket));
  const Bracket<Key> keys = bucket_keys(b, bucket, shift);
  CHECK(keys.low <= key && key <= keys.high, "key %lld is not in its bucket", static_cast<long long>(key));
  CHECK(b.low < keys.low && keys.high < b.high, "bucket of %lld leaves the bracket", static_cast<long long>(key));
  // the neighbours of the bucket's ends lie in other buckets
  if (keys.low - 1 > b.low)
    CHECK(static_cast<int64_t>(inner_offset(b, static_cast<Key>(keys.low - 1)) >> shift) == bucket - 1, "lower end");
  if (keys.high + 1 < b.high)
    CHECK(static_cast<int64_t>(inner_offset(b, static_cast<Key>(keys.high + 1)) >> shift) == bucket + 1, "upper end");
}

template <class Key>
void check_bracket(const Bracket<Key>& b) {
  const uint64_t width = inner_width(b);
  if (width == 0) return;
  const int shift = bucket_shift(b);
  CHECK(shift == 0 || (width >> (shift - 1)) >= static_cast<uint64_t>(kBuckets), "a smaller shift would do");
  check_key(b, shift, static_cast<Key>(b.low + 1));
  check_key(b, shift, static_cast<Key>(b.high - 1));
  for (uint64_t i = 0; i < 50; ++i) {
    const uint64_t offset = mix64(width, i) % width;
    check_key(b, shift, static_cast<Key>(static_cast<unsigned_key_t<Key>>(b.low) + 1u + offset));
  }
}

template <class Key>
void check_brackets() {
  using limits = std::numeric_limits<Key>;
  CHECK((inner_width(Bracket<Key>{5, 5}) == 0 && inner_width(Bracket<Key>{5, 6}) == 0), "nothing is inside");
  CHECK((inner_width(Bracket<Key>{5, 7}) == 1), "one key is inside");
  check_bracket(Bracket<Key>{limits::min(), limits::max()});
  for (Key width = 2; width < 5000; width = static_cast<Key>(width + 7))
    check_bracket(Bracket<Key>{-13, static_cast<Key>(width - 13)});
  for (uint64_t i = 0; i < 20000; ++i) {
    const Key a = static_cast<Key>(mix64(i)), b = static_cast<Key>(mix64(i, 1));
    check_bracket(a < b ? Bracket<Key>{a, b} : Bracket<Key>{b, a});
  }
}

// One sample from each of m equal stretches, in order, none beyond the end.
void check_samples() {
  for (const int64_t n : {int64_t{1}, int64_t{10}, int64_t{1000}, int64_t{1000003}, int64_t{1} << 40}) {
    const int64_t m = std::min<int64_t>(n, 1000);
    int64_t previous = -1;
    for (int64_t j = 0; j < m; ++j) {
      const int64_t first = sample_position(j, m, n, 0.0), last = sample_position(j, m, n, 1.0 - 0x1p-53);
      CHECK(previous <= first && first <= last && last < n, "sample %lld of %lld", static_cast<long long>(j),
            static_cast<long long>(n));
      previous = last;
    }
    CHECK(sample_position(0, m, n, 0.0) == 0, "the first coordinate can be drawn");
  }
}

void check_ranks() {
  const SampleRank middle = sample_rank(501, 1001, 99);
  CHECK(middle.center == 49.5, "the median of the samples estimates the median, got %g", middle.center);
  CHECK(middle.deviation > 4.9 && middle.deviation < 5.6, "binomial deviation, got %g", middle.deviation);
  CHECK(sample_rank(1, 1000, 100).center < 1.0 && sample_rank(1000, 1000, 100).center > 99.0, "both ends");
  CHECK(sample_size(1000000, 1 << 20) >= 9999 && sample_size(1000000, 1 << 20) <= 10000, "n^(2/3)");
  CHECK(sample_size(1000000, 100) == 100, "capped");
}

}  // namespace

int main() {
  check_brackets<int32_t>();
  check_brackets<int64_t>();
  check_samples();
  check_ranks();
  return 0;
}
