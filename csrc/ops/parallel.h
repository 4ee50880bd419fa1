#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/checks.h"

namespace torch_ire {

// A multiple of 8, so that no byte of a packed mask belongs to two chunks.
constexpr int64_t kChunkElems = 8192;

// Calls body(tensor, begin, end) so that every coordinate of every tensor of the list is covered once, in parallel over
// the whole list: many small tensors share the threads as well as one large one does.
template <class Body>
void parallel_over_list(const TensorList& list, Body body) {
  std::vector<int64_t> numels(list.size());
  std::vector<int64_t> first_chunk(list.size() + 1, 0);
  for (size_t i = 0; i < list.size(); ++i) {
    numels[i] = list[i].numel();
    first_chunk[i + 1] = first_chunk[i] + (numels[i] + kChunkElems - 1) / kChunkElems;
  }
  torch::stable::parallel_for(0, first_chunk.back(), 2, [&](int64_t chunk, int64_t last) {
    size_t i =
        static_cast<size_t>(std::upper_bound(first_chunk.begin(), first_chunk.end(), chunk) - first_chunk.begin() - 1);
    for (; chunk < last; ++i) {
      const int64_t stop = std::min(last, first_chunk[i + 1]);
      if (stop <= chunk) continue;
      body(i, (chunk - first_chunk[i]) * kChunkElems, std::min(numels[i], (stop - first_chunk[i]) * kChunkElems));
      chunk = stop;
    }
  });
}

}  // namespace torch_ire
