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

// Narrows two ranges to one key each: the smallest keys of their ranks among `count`, for every thread of a block. Both
// are found in the same reads. The ranges hold all keys or are one key already.
template <class Key>
__device__ inline void select_two_in_block(const Key* keys, int64_t count, KeyRange<Key> (&ranges)[2]) {
  TORCH_IRE_SHARED(unsigned[2][kBuckets], counts);
  constexpr int kInFlight = 8;
  while (ranges[0].low != ranges[0].high || ranges[1].low != ranges[1].high) {
    for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[0][b] = counts[1][b] = 0;
    __syncthreads();
    // keys of the one range, while it is that of the other too, are counted once
    const bool same = ranges[0].low == ranges[1].low && ranges[0].high == ranges[1].high;
    const int shifts[2] = {ranges[0].shift(), ranges[1].shift()};
    const int64_t stride = static_cast<int64_t>(blockDim.x);
    for (int64_t i = threadIdx.x; i < count; i += kInFlight * stride) {
      Key loaded[kInFlight];
      TORCH_IRE_UNROLL(kInFlight)
      for (int u = 0; u < kInFlight; ++u)
        if (i + u * stride < count) loaded[u] = keys[i + u * stride];
      TORCH_IRE_UNROLL(kInFlight)
      for (int u = 0; u < kInFlight; ++u) {
        if (i + u * stride >= count) continue;
        const Key key = loaded[u];
        if (ranges[0].contains(key)) atomicAdd(&counts[0][ranges[0].offset(key) >> shifts[0]], 1u);
        if (!same && ranges[1].contains(key)) atomicAdd(&counts[1][ranges[1].offset(key) >> shifts[1]], 1u);
      }
    }
    __syncthreads();
    for (int r = 0; r < 2; ++r) {
      if (ranges[r].low == ranges[r].high) continue;
      const FoundBucket found = find_bucket(counts[same ? 0 : r], ranges[r].rank);
      ranges[r] = ranges[r].narrowed(found.bucket, found.before);
    }
    __syncthreads();  // before the counts are cleared
  }
}

}  // namespace torch_ire
