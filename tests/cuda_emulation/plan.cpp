// csrc/kernels/chunk_plan.h for the tests.
#include "kernels/chunk_plan.h"

// Writes (launch, tensor, begin, end, chunks of the launch) for every slice, at most `capacity` of them; returns how
// many there are.
extern "C" __attribute__((visibility("default"))) int64_t plan(const int64_t* numels, int64_t count, int64_t chunk,
                                                               int64_t max_slices, int64_t max_chunks, int64_t* out,
                                                               int64_t capacity) {
  int64_t rows = 0, launch_number = 0;
  for (const torch_ire::ChunkLaunch& launch : torch_ire::plan_chunks(
           std::vector<int64_t>(numels, numels + count), chunk, static_cast<size_t>(max_slices), max_chunks)) {
    for (const torch_ire::ChunkSlice& slice : launch.slices) {
      if (rows < capacity) {
        const int64_t row[] = {launch_number, static_cast<int64_t>(slice.tensor), slice.begin, slice.end,
                               launch.num_chunks};
        std::copy(row, row + 5, out + 5 * rows);
      }
      ++rows;
    }
    ++launch_number;
  }
  return rows;
}
