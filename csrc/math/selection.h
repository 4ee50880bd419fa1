#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "math/host_device.h"

// Arithmetic of exact selection in about one read: ranks of a sample that bracket the k-th smallest, and the step from
// the counts of one pass to a smaller bracket.
namespace torch_ire {

// Keys from `low` to `high`. A pass gathers the keys strictly between and counts those up to `low`; ties at either end,
// however many, cost nothing.
template <class Key>
struct Bracket {
  Key low, high;
};

constexpr int kBucketBits = 11;
constexpr int64_t kBuckets = int64_t{1} << kBucketBits;

template <class Key>
using unsigned_key_t = std::make_unsigned_t<Key>;

// Number of keys strictly inside.
template <class Key>
TORCH_IRE_HD unsigned_key_t<Key> inner_width(const Bracket<Key>& b) {
  using Unsigned = unsigned_key_t<Key>;
  const Unsigned span = static_cast<Unsigned>(b.high) - static_cast<Unsigned>(b.low);
  return span == 0 ? 0 : static_cast<Unsigned>(span - 1);
}

// Right shift that maps the offset of an inner key (from low + 1) to one of kBuckets buckets.
template <class Key>
TORCH_IRE_HD int bucket_shift(const Bracket<Key>& b) {
  int shift = 0;
  while ((inner_width(b) >> shift) > static_cast<unsigned_key_t<Key>>(kBuckets - 1)) ++shift;
  return shift;
}

template <class Key>
TORCH_IRE_HD unsigned_key_t<Key> inner_offset(const Bracket<Key>& b, Key key) {
  using Unsigned = unsigned_key_t<Key>;
  return static_cast<Unsigned>(static_cast<Unsigned>(key) - static_cast<Unsigned>(b.low) - 1u);
}

// The keys of one bucket, as a bracket of their own.
template <class Key>
TORCH_IRE_HD Bracket<Key> bucket_keys(const Bracket<Key>& b, int64_t bucket, int shift) {
  using Unsigned = unsigned_key_t<Key>;
  const Unsigned first = static_cast<Unsigned>(bucket) << shift;
  const Unsigned last = static_cast<Unsigned>(first + ((Unsigned{1} << shift) - 1u));
  const Unsigned origin = static_cast<Unsigned>(static_cast<Unsigned>(b.low) + 1u);
  const Unsigned end = static_cast<Unsigned>(inner_width(b) - 1u);
  return {static_cast<Key>(static_cast<Unsigned>(origin + first)),
          static_cast<Key>(static_cast<Unsigned>(origin + (last < end ? last : end)))};
}

// How many of n coordinates to look at first. Looking at m costs about m cache misses, and the bracket that they leave
// holds about n / sqrt(m) coordinates, each of which costs a mispredicted branch: the sum is least near n^(2/3).
inline int64_t sample_size(int64_t n, int64_t largest) {
  return std::min(largest, static_cast<int64_t>(1.0 * std::pow(static_cast<double>(n), 2.0 / 3.0)));
}

// Where in n coordinates sample j of m lies: one at random in each of m equal stretches; `random` in [0, 1).
TORCH_IRE_HD int64_t sample_position(int64_t j, int64_t m, int64_t n, double random) {
  const double stretch = static_cast<double>(n) / static_cast<double>(m);
  const int64_t position = static_cast<int64_t>((static_cast<double>(j) + random) * stretch);
  return position < n ? position : n - 1;
}

// The rank, among m samples, around which the k-th smallest of n lies, and its standard deviation.
struct SampleRank {
  double center, deviation;
};

inline SampleRank sample_rank(int64_t k, int64_t n, int64_t m) {
  const double p = (static_cast<double>(k) - 0.5) / static_cast<double>(n);
  const double samples = static_cast<double>(m);
  return {p * samples, std::sqrt(samples * p * (1.0 - p)) + 0.5};
}

}  // namespace torch_ire
