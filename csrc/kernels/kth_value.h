#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/selection_plan.h"
#include "math/score_key.h"
#include "math/selection.h"

namespace torch_ire {

// Writes the keys of x[begin, end) that lie strictly inside the bracket to `inside`, which has room for all of them,
// and returns how many; adds the number of keys up to the bracket's low end to `up_to_low`.
template <class T, Score score>
int64_t bracket_pass_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                               int64_t& up_to_low, score_key_t<T, score>* inside);

// Number of keys of x[begin, end) that are at most `key`.
template <class T, Score score>
int64_t count_up_to_range_cpu(const T* x, int64_t begin, int64_t end, score_key_t<T, score> key);

#ifdef TORCH_IRE_WITH_CUDA

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

// How much of the list was read, first in the workspace when a selection has ended.
struct SelectionRecord {
  unsigned long long scouted;  // elements that were looked at beforehand
  unsigned long long passes;   // over the whole list
};

// Bytes that launch_kth_value needs as workspace: counts, and the keys of the sample or those that a pass gathers, at
// most 2 MiB of them.
template <class T, Score score>
int64_t kth_value_workspace(const SelectionPlan& plan);

// Of the list's size, for launch_kth_value and its workspace.
template <class T, Score score>
SelectionPlan plan_kth_value(int64_t total, const SelectionLimits& limits = {}) {
  return plan_selection(total, sizeof(score_key_t<T, score>), limits);
}

// The k-th smallest score of the list into `result`. All decisions are made on the device: a fixed sequence of
// launches, no synchronisation. Reads the list once, up to an eighth of it before; twice where heavy ties hold the
// answer or the scouts of a long list mislead (csrc/kernels/selection_plan.h), and at most 4 times (7 in float64) where
// the first sample does. Passes that are not needed end at once.
template <class T, Score score>
cudaError_t launch_kth_value(const std::vector<KthValueSpan<T>>& spans, int64_t k, const SelectionPlan& plan,
                             void* workspace, kth_value_t<T, score>* result, cudaStream_t stream);

#endif

}  // namespace torch_ire
