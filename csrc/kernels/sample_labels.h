#pragma once

#include <cstdint>

#include "kernels/cuda_types.h"
#include "math/number.h"

namespace torch_ire {

// Classes are read in blocks: a block's largest logit and its sum of exponentials come from one read of memory, and the
// sums tell which block holds the label, so that only this block is read again.
constexpr int64_t kLabelBlock = 1024;
// Rows whose classes are not adjacent in memory are taken together, so that what one cache line holds is used at once.
constexpr int64_t kLabelTile = 16;

inline int64_t num_label_blocks(int64_t classes) {
  return (classes + kLabelBlock - 1) / kLabelBlock;
}

template <class T>
struct LabelTile {
  const T* logits[kLabelTile];         // first class of each row
  double uniform[kLabelTile];          // one random number in (0, 1) a row
  int64_t* labels[kLabelTile];         // out
  opmath_t<T>* logsumexp[kLabelTile];  // out
  int64_t rows;
};

// Draws one label a row by inverting the cumulative distribution, and writes the row's logsumexp. Class c of a row is
// at logits[c * stride]. block_max, block_sum: workspace of rows * num_label_blocks(classes).
template <class T>
void sample_labels_tile_cpu(const LabelTile<T>& tile, int64_t classes, int64_t stride, opmath_t<T>* block_max,
                            double* block_sum);

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace torch_ire
