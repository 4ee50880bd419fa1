#pragma once

#include <cstdint>

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

}  // namespace torch_ire
