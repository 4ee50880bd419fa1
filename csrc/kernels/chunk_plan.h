#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

// Which block works on what, planned on the host before anything is launched. A pure function of sizes that knows
// nothing of CUDA.
namespace torch_ire {

// Elements [begin, end) of one tensor; begin is a multiple of the chunk length.
struct ChunkSlice {
  size_t tensor;
  int64_t begin, end;
};

// One launch: blocks number the chunks of its slices in order.
struct ChunkLaunch {
  std::vector<ChunkSlice> slices;
  int64_t num_chunks = 0;
};

// Cuts tensors into chunks of `chunk` elements (the last one of a tensor may be shorter) and packs them into launches
// of at most `max_slices` slices and `max_chunks` chunks. Every element belongs to one chunk; empty tensors to none.
inline std::vector<ChunkLaunch> plan_chunks(const std::vector<int64_t>& numels, int64_t chunk, size_t max_slices,
                                            int64_t max_chunks) {
  std::vector<ChunkLaunch> launches;
  for (size_t i = 0; i < numels.size(); ++i) {
    for (int64_t begin = 0; begin < numels[i];) {
      const bool full =
          launches.empty() || launches.back().slices.size() == max_slices || launches.back().num_chunks == max_chunks;
      if (full) launches.emplace_back();
      ChunkLaunch& launch = launches.back();
      const int64_t left = numels[i] - begin;
      const int64_t wanted = left / chunk + (left % chunk != 0);
      const int64_t taken = std::min(wanted, max_chunks - launch.num_chunks);
      const int64_t end = taken == wanted ? numels[i] : begin + taken * chunk;
      launch.slices.push_back({i, begin, end});
      launch.num_chunks += taken;
      begin = end;
    }
  }
  return launches;
}

}  // namespace torch_ire
