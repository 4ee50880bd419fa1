#pragma once

#include <cstdint>
#include <limits>

#include "kernels/block_reduce.cuh"
#include "kernels/cuda_language.cuh"
#include "math/selection.h"

// Selection of the k-th smallest key by counting: keys of a range fall into kBuckets buckets of equal width, the bucket
// that holds the rank becomes the range. Counts are integers: the result is exact, and the same whatever thread counted
// first.
namespace torch_ire {

// The answer is the rank-th smallest, from 1, of the keys from low to high.
template <class Key>
struct KeyRange {
  Key low, high;
  int64_t rank;

  TORCH_IRE_HD bool contains(Key key) const { return low <= key && key <= high; }

  // Right shift that maps the offsets of keys to buckets.
  TORCH_IRE_HD int shift() const {
    int s = 0;
    while ((offset(high) >> s) >= static_cast<unsigned_key_t<Key>>(kBuckets)) ++s;
    return s;
  }
  TORCH_IRE_HD unsigned_key_t<Key> offset(Key key) const {
    return static_cast<unsigned_key_t<Key>>(static_cast<unsigned_key_t<Key>>(key) -
                                            static_cast<unsigned_key_t<Key>>(low));
  }
  // The keys of one bucket; `before` of the range lie in lower ones.
  TORCH_IRE_HD KeyRange narrowed(int bucket, int64_t before) const {
    using Unsigned = unsigned_key_t<Key>;
    const int s = shift();
    const Unsigned first = static_cast<Unsigned>(static_cast<Unsigned>(bucket) << s);
    const Unsigned last = static_cast<Unsigned>(first + ((Unsigned{1} << s) - 1u));
    const Unsigned end = offset(high) < last ? offset(high) : last;
    return {static_cast<Key>(static_cast<Unsigned>(low) + first), static_cast<Key>(static_cast<Unsigned>(low) + end),
            rank - before};
  }
};

struct FoundBucket {
  int bucket;
  int64_t before;
};

// The bucket in which cumulative counts reach `rank`, for every thread of a block of whole warps. All counts together
// are at least rank.
template <class Count>
__device__ inline FoundBucket find_bucket(const Count* counts, int64_t rank) {
  TORCH_IRE_SHARED(int64_t[kWarpThreads * kMaxWarps], of_thread);
  TORCH_IRE_SHARED(FoundBucket, found);
  const int threads = static_cast<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x);
  const int buckets = static_cast<int>(kBuckets);
  const int per_thread = (buckets + threads - 1) / threads;
  int64_t sum = 0;
  for (int b = t * per_thread; b < (t + 1) * per_thread && b < buckets; ++b) sum += static_cast<int64_t>(counts[b]);
  of_thread[t] = sum;
  __syncthreads();
  if (t < kWarpThreads) {
    const int per_lane = threads / kWarpThreads;
    int64_t own = 0;
    for (int i = t * per_lane; i < (t + 1) * per_lane; ++i) own += of_thread[i];
    int64_t up_to = own;
    for (int offset = 1; offset < kWarpThreads; offset *= 2) {
      const int64_t lower = __shfl_up_sync(kFullWarp, up_to, static_cast<unsigned>(offset));
      if (t >= offset) up_to += lower;
    }
    int64_t before = up_to - own;
    if (before < rank && rank <= up_to) {
      int i = t * per_lane;
      for (; before + of_thread[i] < rank; ++i) before += of_thread[i];
      int b = i * per_thread;
      for (; before + static_cast<int64_t>(counts[b]) < rank; ++b) before += static_cast<int64_t>(counts[b]);
      found = {b, before};
    }
  }
  __syncthreads();
  return found;
}

// The rank-th smallest of `count` keys, for every thread of a block.
template <class Key>
__device__ inline Key select_in_block(const Key* keys, int64_t count, int64_t rank) {
  TORCH_IRE_SHARED(unsigned[kBuckets], counts);
  KeyRange<Key> range{std::numeric_limits<Key>::min(), std::numeric_limits<Key>::max(), rank};
  while (range.low != range.high) {
    for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[b] = 0;
    __syncthreads();
    const int shift = range.shift();
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
      const Key key = keys[i];
      if (range.contains(key)) atomicAdd(&counts[range.offset(key) >> shift], 1u);
    }
    __syncthreads();
    const FoundBucket found = find_bucket(counts, range.rank);
    range = range.narrowed(found.bucket, found.before);
    __syncthreads();  // before the counts are cleared
  }
  return range.low;
}

}  // namespace torch_ire
