#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "kernels/chunked_list.h"
#include "ops/checks.h"

namespace torch_ire {

inline ChunkedList chunked(const TensorList& list) {
  std::vector<int64_t> numels(list.size());
  for (size_t i = 0; i < list.size(); ++i) numels[i] = list[i].numel();
  return ChunkedList(std::move(numels));
}

// Calls body(tensor, begin, end) so that every coordinate of every tensor of the list is covered once, in parallel over
// the whole list.
template <class Body>
void parallel_over_list(const TensorList& list, Body body) {
  const ChunkedList chunks = chunked(list);
  torch::stable::parallel_for(0, chunks.num_chunks(), 2,
                              [&](int64_t first, int64_t last) { chunks.for_each_tensor(first, last, body); });
}

}  // namespace torch_ire
