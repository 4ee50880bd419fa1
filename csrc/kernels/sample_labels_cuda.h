#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "math/number.h"

namespace torch_ire {

// Where the rows of a strided tensor are; its last dimension holds the classes.
struct LabelRows {
  static constexpr int kMaxDims = 64;  // as many as a tensor can have

  int32_t dims;
  int64_t sizes[kMaxDims], strides[kMaxDims];
  int64_t count;         // rows
  int64_t classes;       // in each row, ...
  int64_t class_stride;  // ... this far apart

  TORCH_IRE_HD int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (int d = dims; d-- > 0; row /= sizes[d]) at += row % sizes[d] * strides[d];
    return at;
  }
};

// Draws one label a row by inverting the cumulative distribution, with the random number that the CPU operator takes,
// and writes the row's logsumexp. Reads the logits once, and a sixteenth of them a second time, out of the cache as a
// rule. No synchronisation, no workspace.
template <class T>
cudaError_t launch_sample_labels(const T* logits, const LabelRows& rows, uint64_t key, int64_t* labels,
                                 opmath_t<T>* logsumexp, cudaStream_t stream);

}  // namespace torch_ire
