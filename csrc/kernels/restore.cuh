#pragma once

#include "kernels/multi_tensor.cuh"

namespace torch_ire {

// What is left of a step that found_inf skips: theta back from where the step would have started.
template <int kLanes, class T>
__device__ inline void restore(const Chunk& chunk, bool aligned, const T* from, T* theta) {
  if (from == theta) return;
  walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
    constexpr int N = decltype(n)::value;
    store_lanes<N>(theta + i, load_lanes<N>(from + i));
  });
}

}  // namespace torch_ire
