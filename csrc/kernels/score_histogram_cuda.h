#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/score_histogram.h"

namespace torch_ire {

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

}  // namespace torch_ire
