#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "ops/checks.h"

namespace torch_ire {

// A multiple of 8, so that no byte of a packed mask belongs to two chunks.
constexpr int64_t kChunkElems = 8192;

// A list of tensors cut into chunks that are numbered through, so that many small tensors share the threads as well as
// one large one does.
class ChunkedList {
 public:
  explicit ChunkedList(const TensorList& list) : numels_(list.size()), first_chunk_(list.size() + 1, 0) {
    for (size_t i = 0; i < list.size(); ++i) {
      numels_[i] = list[i].numel();
      first_chunk_[i + 1] = first_chunk_[i] + (numels_[i] + kChunkElems - 1) / kChunkElems;
    }
  }

  int64_t num_chunks() const { return first_chunk_.back(); }

  // Calls body(tensor, begin, end) for the coordinates of chunks [first, last), once for each tensor among them.
  template <class Body>
  void for_each_tensor(int64_t first, int64_t last, Body body) const {
    for (size_t i = tensor_of(first); first < last; ++i) {
      const int64_t stop = std::min(last, first_chunk_[i + 1]);
      if (stop <= first) continue;
      body(i, (first - first_chunk_[i]) * kChunkElems, std::min(numels_[i], (stop - first_chunk_[i]) * kChunkElems));
      first = stop;
    }
  }

  // The same, once for each chunk: body(chunk, tensor, begin, end).
  template <class Body>
  void for_each_chunk(int64_t first, int64_t last, Body body) const {
    for_each_tensor(first, last, [&](size_t i, int64_t begin, int64_t end) {
      int64_t chunk = first_chunk_[i] + begin / kChunkElems;
      for (; begin < end; begin += kChunkElems, ++chunk) body(chunk, i, begin, std::min(end, begin + kChunkElems));
    });
  }

 private:
  size_t tensor_of(int64_t chunk) const {
    return static_cast<size_t>(std::upper_bound(first_chunk_.begin(), first_chunk_.end(), chunk) -
                               first_chunk_.begin() - 1);
  }

  std::vector<int64_t> numels_;
  std::vector<int64_t> first_chunk_;
};

// Calls body(tensor, begin, end) so that every coordinate of every tensor of the list is covered once, in parallel over
// the whole list.
template <class Body>
void parallel_over_list(const TensorList& list, Body body) {
  const ChunkedList chunks(list);
  torch::stable::parallel_for(0, chunks.num_chunks(), 2,
                              [&](int64_t first, int64_t last) { chunks.for_each_tensor(first, last, body); });
}

}  // namespace torch_ire
