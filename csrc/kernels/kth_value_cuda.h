#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/kth_value.h"

namespace torch_ire {

// One tensor of the list.
template <class T>
struct KthValueSpan {
  const T* x;
  int64_t first;  // elements of the tensors before it
  int64_t numel;
};

// What a k-th value is stored as: a number of the tensors, or the float32 square of one.
template <class T, Score score>
using kth_value_t = std::conditional_t<score == Score::square, float, T>;

// Bytes that launch_kth_value needs as workspace for `total` elements: the sample (at most 64 Ki keys), what a pass
// gathers (at most 2 Mi keys), counts.
template <class T, Score score>
int64_t kth_value_workspace(int64_t total);

// The k-th smallest score of the list into `result`. All decisions are made on the device: a fixed sequence of
// launches, no synchronisation. Reads the list once where the keys that the sample leaves in question fit the
// workspace, twice as a rule where they do not, and at most 4 times (7 for scores in float64) where the sample
// misleads; passes that are not needed end at once.
template <class T, Score score>
cudaError_t launch_kth_value(const std::vector<KthValueSpan<T>>& spans, int64_t k, void* workspace,
                             kth_value_t<T, score>* result, cudaStream_t stream);

}  // namespace torch_ire
