#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/selection_plan.h"
#include "math/score_key.h"
#include "math/selection.h"

namespace torch_ire {

// A key strictly inside the bracket of a pass: its bucket and its offset from the start of its chunk.
constexpr int kOffsetBits = 16;
constexpr uint32_t gathered_entry(uint32_t bucket, uint32_t offset) {
  return bucket << kOffsetBits | offset;
}
constexpr int64_t bucket_of(uint32_t entry) {
  return entry >> kOffsetBits;
}
constexpr int64_t offset_of(uint32_t entry) {
  return entry & ((uint32_t{1} << kOffsetBits) - 1);
}

// One pass over the chunk x[begin, end), at most 2^16 elements; begin is a multiple of 64. Writes an entry for each key
// strictly inside the bracket to `inside`, which has room for two more than there are elements, and returns how many;
// adds the number of keys up to the bracket's low end to `up_to_low`, and, unless `flat_mask` is null, marks them
// there: bits [begin, end) of the tensor's mask, the unused bits of the last byte 0.
template <class T, Score score>
int64_t bracket_pass_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                               int64_t& up_to_low, uint32_t* inside, uint8_t* flat_mask);

// Adds the numbers of keys of x[begin, end) below the bracket's low end and up to its high end.
template <class T, Score score>
void count_ends_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                          int64_t& below_low, int64_t& up_to_high);

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
