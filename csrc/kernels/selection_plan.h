#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "math/selection.h"

// How much of a list the selection on a GPU looks at before it reads the list, planned on the host: a pure function of
// sizes.
//
// Of n elements a sample of m, one at random from each of equal stretches, puts the k-th smallest between two of its
// own numbers. The sample's rank of the k-th has a standard deviation of at most sqrt(m p (1 - p)) <= sqrt(m) / 2, p =
// k / n. d of them on either side hold 2 d n sqrt(p (1 - p)) / sqrt(m) <= d n / sqrt(m) elements and miss with the
// probability that a normal number exceeds d deviations:
//
//   m = 32 Ki, d = 4: n / 45 elements, 6e-5.
//
// The keys of 2 MiB hold that up to n = 2e7 (1e7 in float64). Longer lists are scouted: a larger sample, n / 32 to n /
// 8 of the list in whole 64-byte segments, is counted inside the first bracket, and the bracket that the pass over the
// list gathers holds what there is room for, `kept` = 0.85 of it. Half of that is
//
//   d = kept / n sqrt(m) / (2 sqrt(p (1 - p)))
//
// deviations. In keys of 32 bits, at p = 0.8, with m as planned here: d = 6.4 up to n = 2^29 (m = n / 14), 6.0 for
// 2^30, 4.2 for 2^31 (a miss in 40,000); in keys of 64 bits 4.2 for 2^29, 3.0 for 2^30 (a miss in 370), 2.1 for 2^31.
// Neighbours that resemble each other count for less: where c coordinates of a segment are worth one, d shrinks by
// sqrt(c). A miss costs one more read: a bracket four times as wide as what is kept has been counted in 2048 parts by
// then.
//
// The parts are equal in keys, not in elements. Where the first bracket spans many powers of two, one part may hold
// more than there is room for, and the radix passes narrow it over the list: at the median of numbers of both signs, or
// where p is within 16 / m of 0 or 1, so that the sample has nothing beyond the answer.
namespace torch_ire {

struct SelectionLimits {
  int64_t gathered_whole = 32768;        // lists up to here are gathered by the pass that reads them
  int64_t max_sample = 32768;            // keys that one block selects from in a few microseconds
  int64_t key_bytes = int64_t{2} << 20;  // room for gathered keys; the sample is in the same place before
};

struct SelectionPlan {
  int64_t total;
  int64_t samples;        // 0: no sample
  int64_t capacity;       // keys that there is room for
  int64_t kept;           // elements that a scouted bracket is made for
  int64_t scouted_every;  // one segment in so many is scouted; 0: none
};

// Half the width of the first bracket in standard deviations of the sample's rank, and what the scouts aim at.
constexpr double kDeviations = 4.0;
constexpr double kScoutDeviations = 5.0;

inline SelectionPlan plan_selection(int64_t total, int64_t bytes_of_key, const SelectionLimits& limits = {}) {
  if (total <= limits.gathered_whole) return {total, 0, std::max<int64_t>(total, 1), total, 0};
  const int64_t samples = sample_size(total, limits.max_sample);
  const double n = static_cast<double>(total);
  const double expected = kDeviations * n / std::sqrt(static_cast<double>(samples));
  const int64_t wanted = std::max(samples, static_cast<int64_t>(2.0 * expected));
  const int64_t capacity = std::min(wanted, std::max(samples, limits.key_bytes / bytes_of_key));
  const double kept = 0.85 * static_cast<double>(capacity);
  SelectionPlan plan{total, samples, capacity, static_cast<int64_t>(kept), 0};
  if (expected > kept) {
    const double deviations = kScoutDeviations * n / kept;  // n / m as large as leaves so many
    plan.scouted_every = static_cast<int64_t>(std::clamp(n / (deviations * deviations), 8.0, 32.0));
  }
  return plan;
}

}  // namespace torch_ire
