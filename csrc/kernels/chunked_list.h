#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace torch_ire {

// A multiple of 64, so that no word of a packed mask belongs to two chunks, and below 2^16: offsets in a chunk have 16
// bits.
constexpr int64_t kChunkElems = 8192;

// A list of tensors cut into chunks that are numbered through, so that many small tensors share the threads as well as
// one large one does.
class ChunkedList {
 public:
  explicit ChunkedList(std::vector<int64_t> numels) : numels_(std::move(numels)), first_chunk_(numels_.size() + 1, 0) {
    for (size_t i = 0; i < numels_.size(); ++i)
      first_chunk_[i + 1] = first_chunk_[i] + (numels_[i] + kChunkElems - 1) / kChunkElems;
  }

  const std::vector<int64_t>& numels() const { return numels_; }
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

}  // namespace torch_ire
