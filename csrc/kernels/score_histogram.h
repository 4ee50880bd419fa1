#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "math/key_digit.h"
#include "math/score_key.h"

namespace torch_ire {

// Neighbouring coordinates often have the same digit, and an increment waits for the one before it at the same address:
// they take turns over this many counters.
constexpr int kCounterTurns = 4;
// Counters that a thread brings along, zero at first: kCounterTurns a bucket, and one bucket more for what is not
// counted.
constexpr int64_t kCounters = (kBuckets + 1) * kCounterTurns;

// Adds the digits of x[begin, end) to the counters; Key is score_key_t<T, score> or int64_t.
template <class T, Score score, class Key>
void score_histogram_range_cpu(const T* x, int64_t begin, int64_t end, const KeyDigit<Key>& digit, int64_t* counters);

#ifdef TORCH_IRE_WITH_CUDA

// One tensor of the list.
template <class T>
struct ScoreHistogramSpan {
  const T* x;
  int64_t numel;
};

// counts[b], kBuckets of them, becomes the number of keys of the list whose digit at `shift` is b among those of
// `prefix`, which is read on the device; Key is score_key_t<T, score> or int64_t. One launch up to about 1000 tensors,
// no synchronisation, no workspace.
template <class T, Score score, class Key>
cudaError_t launch_score_histogram(const std::vector<ScoreHistogramSpan<T>>& spans, int shift, const int64_t* prefix,
                                   int64_t* counts, cudaStream_t stream);

#endif

}  // namespace torch_ire
