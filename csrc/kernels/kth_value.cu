#include <algorithm>
#include <cmath>

#include "kernels/kth_value_cuda.h"
#include "kernels/multi_tensor.cuh"
#include "kernels/radix_select.cuh"
#include "math/counter_rng.h"

namespace torch_ire {
namespace {

// Below this many elements one pass gathers them all.
constexpr int64_t kSampledElems = 32768;
constexpr int64_t kMaxSample = 65536;
constexpr int64_t kMaxGathered = int64_t{1} << 21;
// Half the width of the bracket in standard deviations of the sample's rank: it misses once in ten thousand.
constexpr double kDeviations = 4.0;
// Keys that a block holds back to append them to the gathered ones together.
constexpr int kHeld = 1024;
constexpr int kSelectThreads = 1024;

using Count = unsigned long long;

// In device memory, first in the workspace.
template <class Key>
struct KthState {
  Bracket<Key> bracket;  // of the counting pass
  KeyRange<Key> range;   // where the answer is, after it
  Count below, up_to_low, up_to_high, inside;
  Count counts[kBuckets];
  bool from_gathered;  // whether the range's keys are all among the gathered ones
};

template <class Key>
struct Workspace {
  KthState<Key>* state;
  Key* sample;
  Key* gathered;
  int64_t capacity;
};

int64_t num_sampled(int64_t total) {
  return total <= kSampledElems ? 0 : sample_size(total, kMaxSample);
}
// Twice what the bracket holds if the sample is as good as can be expected.
int64_t num_gathered(int64_t total) {
  const int64_t samples = num_sampled(total);
  if (samples == 0) return total;
  const double expected = kDeviations * static_cast<double>(total) / std::sqrt(static_cast<double>(samples));
  return std::min(kMaxGathered, static_cast<int64_t>(2.0 * expected));
}

// grid: any, striding over the samples; the samples that lie in other launches' tensors are left to those
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads)
    sample_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, int64_t samples, int64_t total,
                  score_key_t<T, score>* sample) {
  const int64_t begin = pack.spans[0].first;
  const int64_t end = pack.spans[pack.count - 1].first + pack.spans[pack.count - 1].numel;
  for (int64_t j = blockIdx.x * blockDim.x + threadIdx.x; j < samples; j += gridDim.x * blockDim.x) {
    const double random = static_cast<double>(mix32(static_cast<uint32_t>(j))) * 0x1p-32;
    const int64_t position = sample_position(j, samples, total, random);
    if (position < begin || position >= end) continue;
    int lo = 0;
    for (int hi = pack.count; hi - lo > 1;) {
      const int middle = (lo + hi) / 2;
      (pack.spans[middle].first <= position ? lo : hi) = middle;
    }
    sample[j] = score_key<score>(pack.spans[lo].x[position - pack.spans[lo].first]);
  }
}

// grid: one block. Ranks from 1; outside the sample they mean that nothing bounds the answer on this side.
template <class Key>
__global__ void __launch_bounds__(kSelectThreads)
    bracket_kernel(const Key* sample, int64_t samples, int64_t low_rank, int64_t high_rank, KthState<Key>* state) {
  Bracket<Key> bracket{std::numeric_limits<Key>::min(), std::numeric_limits<Key>::max()};
  if (low_rank >= 1) bracket.low = select_in_block(sample, samples, low_rank);
  if (high_rank <= samples) bracket.high = select_in_block(sample, samples, high_rank);
  if (threadIdx.x == 0) state->bracket = bracket;
}

// Counts of a pass in shared memory, added to those of the state.
template <class Key>
__device__ inline void add_counts(const unsigned* counts, KthState<Key>* state) {
  __syncthreads();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x)
    if (counts[b] != 0) atomicAdd(&state->counts[b], static_cast<Count>(counts[b]));
}

// grid: kReduceBlocks or fewer, striding over the chunks; block: whole warps. Counts the keys below, at and above the
// ends of the bracket, and gathers those strictly inside.
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads)
    bracket_pass_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, uint32_t chunks,
                        TORCH_IRE_GRID_CONSTANT(Workspace<score_key_t<T, score>>) workspace) {
  using Key = score_key_t<T, score>;
  constexpr int kLanes = kLanesOf<T>;
  TORCH_IRE_SHARED(unsigned[kBuckets], counts);
  TORCH_IRE_SHARED(Key[kHeld], held);
  TORCH_IRE_SHARED(unsigned, num_held);
  TORCH_IRE_SHARED(Count, position);
  KthState<Key>* const state = workspace.state;
  const Bracket<Key> bracket = state->bracket;
  const KeyRange<Key> inner{static_cast<Key>(bracket.low + (bracket.low < bracket.high)),
                            static_cast<Key>(bracket.high - (bracket.low < bracket.high)), 0};
  const int shift = inner.shift();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[b] = 0;
  if (threadIdx.x == 0) num_held = 0;
  __syncthreads();

  Count below = 0, up_to_low = 0, up_to_high = 0;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    const T* const x = pack.spans[chunk.span].x;
    unsigned below_here = 0, up_to_low_here = 0, up_to_high_here = 0;
    read_chunk<kLanes>(chunk, x, [&](const auto& lanes) {
      for (const T element : lanes.lane) {
        const Key key = score_key<score>(element);
        below_here += key < bracket.low;
        up_to_low_here += key <= bracket.low;
        up_to_high_here += key <= bracket.high;
        if (bracket.low < key && key < bracket.high) {
          atomicAdd(&counts[inner.offset(key) >> shift], 1u);
          const unsigned at = atomicAdd(&num_held, 1u);
          if (at < kHeld) {
            held[at] = key;
          } else {
            const Count to = atomicAdd(&state->inside, Count{1});
            if (to < static_cast<Count>(workspace.capacity)) workspace.gathered[to] = key;
          }
        }
      }
    });
    below += below_here;
    up_to_low += up_to_low_here;
    up_to_high += up_to_high_here;
    __syncthreads();
    const bool last = block + gridDim.x >= chunks;
    const unsigned full = num_held < kHeld ? num_held : kHeld;
    if (full >= kHeld / 2 || last) {
      if (threadIdx.x == 0) position = atomicAdd(&state->inside, static_cast<Count>(full));
      __syncthreads();
      for (unsigned h = threadIdx.x; h < full; h += blockDim.x)
        if (position + h < static_cast<Count>(workspace.capacity)) workspace.gathered[position + h] = held[h];
      if (threadIdx.x == 0) num_held = 0;
    }
    __syncthreads();
  }
  add_counts(counts, state);
  below = block_sum(below);
  up_to_low = block_sum(up_to_low);
  up_to_high = block_sum(up_to_high);
  if (threadIdx.x == 0) {
    atomicAdd(&state->below, below);
    atomicAdd(&state->up_to_low, up_to_low);
    atomicAdd(&state->up_to_high, up_to_high);
  }
}

// Narrows the range by its counts and clears them for the next pass.
template <class Key>
__device__ inline void narrow(KthState<Key>* state) {
  const KeyRange<Key> range = state->range;
  const FoundBucket found = find_bucket(state->counts, range.rank);
  if (threadIdx.x == 0) state->range = range.narrowed(found.bucket, found.before);
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) state->counts[b] = 0;
}

// grid: one block. What the counts of the bracket say about the k-th smallest key.
template <class Key>
__global__ void __launch_bounds__(kStreamThreads) conclude_kernel(int64_t k, int64_t capacity, KthState<Key>* state) {
  const Bracket<Key> b = state->bracket;
  const int64_t below = static_cast<int64_t>(state->below);
  const int64_t up_to_low = static_cast<int64_t>(state->up_to_low);
  const int64_t inside = static_cast<int64_t>(state->inside);
  const int64_t up_to_high = static_cast<int64_t>(state->up_to_high);
  const bool is_inside = k > up_to_low && k <= up_to_low + inside;
  if (threadIdx.x == 0) {
    KeyRange<Key> range{b.low, b.low, 1};
    if (k <= below)
      range = {std::numeric_limits<Key>::min(), static_cast<Key>(b.low - 1), k};
    else if (is_inside)
      range = {static_cast<Key>(b.low + 1), static_cast<Key>(b.high - 1), k - up_to_low};
    else if (k > up_to_high)
      range = {static_cast<Key>(b.high + 1), std::numeric_limits<Key>::max(), k - up_to_high};
    else if (k > up_to_low)
      range = {b.high, b.high, 1};
    state->range = range;
    state->from_gathered = is_inside && inside <= capacity;
  }
  __syncthreads();
  if (is_inside) {
    narrow(state);
  } else {
    for (unsigned i = threadIdx.x; i < kBuckets; i += blockDim.x) state->counts[i] = 0;
  }
}

// grid: kReduceBlocks or fewer, striding over the gathered keys (in the first launch of a pass) or over the chunks
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads)
    radix_pass_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, uint32_t chunks, bool first_launch,
                      TORCH_IRE_GRID_CONSTANT(Workspace<score_key_t<T, score>>) workspace) {
  using Key = score_key_t<T, score>;
  constexpr int kLanes = kLanesOf<T>;
  TORCH_IRE_SHARED(unsigned[kBuckets], counts);
  KthState<Key>* const state = workspace.state;
  const KeyRange<Key> range = state->range;
  if (range.low == range.high || (state->from_gathered && !first_launch)) return;
  const int shift = range.shift();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[b] = 0;
  __syncthreads();
  const auto count = [&](Key key) {
    if (range.contains(key)) atomicAdd(&counts[range.offset(key) >> shift], 1u);
  };
  if (state->from_gathered) {
    const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<int64_t>(state->inside); i += stride)
      count(workspace.gathered[i]);
  } else {
    for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
      const Chunk chunk = chunk_of_block(pack, block);
      read_chunk<kLanes>(chunk, pack.spans[chunk.span].x, [&](const auto& lanes) {
        for (const T element : lanes.lane) count(score_key<score>(element));
      });
    }
  }
  add_counts(counts, state);
}

// grid: one block. `result` is null but in the last pass.
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads)
    narrow_kernel(KthState<score_key_t<T, score>>* state, kth_value_t<T, score>* result) {
  if (state->range.low != state->range.high) narrow(state);
  if (threadIdx.x == 0 && result != nullptr)
    *result = round_nearest<kth_value_t<T, score>>::from(from_ordered_key<score_t<T, score>>(state->range.low));
}

template <class Key>
Workspace<Key> workspace_at(void* memory, int64_t total) {
  KthState<Key>* const state = static_cast<KthState<Key>*>(memory);
  Key* const sample = reinterpret_cast<Key*>(state + 1);
  return {state, sample, sample + num_sampled(total), num_gathered(total)};
}

template <class T>
int64_t total_of(const std::vector<KthValueSpan<T>>& spans) {
  return spans.back().first + spans.back().numel;
}

unsigned blocks_for(unsigned chunks) {
  return chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
}

// Finds state->bracket, from a sample where the list is long.
template <class T, Score score>
cudaError_t launch_bracket(const std::vector<KthValueSpan<T>>& spans, int64_t k,
                           const Workspace<score_key_t<T, score>>& workspace, cudaStream_t stream) {
  using Key = score_key_t<T, score>;
  const int64_t total = total_of(spans);
  const int64_t samples = num_sampled(total);
  int64_t low_rank = 0, high_rank = 1;  // nothing bounds the answer
  if (samples > 0) {
    const cudaError_t error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned) {
      const unsigned blocks = static_cast<unsigned>((samples + kStreamThreads - 1) / kStreamThreads);
      TORCH_IRE_LAUNCH((sample_kernel<T, score>), blocks, kStreamThreads, 0, stream, pack, samples, total,
                       workspace.sample);
    });
    if (error != cudaSuccess) return error;
    const SampleRank rank = sample_rank(k, total, samples);
    low_rank = static_cast<int64_t>(std::floor(rank.center - kDeviations * rank.deviation));
    high_rank = static_cast<int64_t>(std::ceil(rank.center + kDeviations * rank.deviation)) + 1;
  }
  TORCH_IRE_LAUNCH(bracket_kernel<Key>, 1u, kSelectThreads, 0, stream, workspace.sample, samples, low_rank, high_rank,
                   workspace.state);
  return cudaGetLastError();
}

}  // namespace

template <class T, Score score>
int64_t kth_value_workspace(int64_t total) {
  using Key = score_key_t<T, score>;
  return static_cast<int64_t>(sizeof(KthState<Key>)) +
         (num_sampled(total) + num_gathered(total)) * static_cast<int64_t>(sizeof(Key));
}

template <class T, Score score>
cudaError_t launch_kth_value(const std::vector<KthValueSpan<T>>& spans, int64_t k, void* memory,
                             kth_value_t<T, score>* result, cudaStream_t stream) {
  using Key = score_key_t<T, score>;
  const Workspace<Key> workspace = workspace_at<Key>(memory, total_of(spans));
  cudaError_t error = cudaMemsetAsync(workspace.state, 0, sizeof(KthState<Key>), stream);
  if (error == cudaSuccess) error = launch_bracket<T, score>(spans, k, workspace, stream);
  if (error != cudaSuccess) return error;
  error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned chunks) {
    TORCH_IRE_LAUNCH((bracket_pass_kernel<T, score>), blocks_for(chunks), kStreamThreads, 0, stream, pack, chunks,
                     workspace);
  });
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(conclude_kernel<Key>, 1u, kStreamThreads, 0, stream, k, workspace.capacity, workspace.state);

  // Every pass takes kBucketBits off the width of the range, which is nearly all keys where the bracket missed.
  constexpr int kKeyBits = 8 * static_cast<int>(sizeof(Key));
  constexpr int kPasses = (kKeyBits + kBucketBits - 1) / kBucketBits;
  for (int pass = 1; pass <= kPasses; ++pass) {
    bool first_launch = true;
    error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned chunks) {
      TORCH_IRE_LAUNCH((radix_pass_kernel<T, score>), blocks_for(chunks), kStreamThreads, 0, stream, pack, chunks,
                       first_launch, workspace);
      first_launch = false;
    });
    if (error != cudaSuccess) return error;
    TORCH_IRE_LAUNCH((narrow_kernel<T, score>), 1u, kStreamThreads, 0, stream, workspace.state,
                     pass == kPasses ? result : nullptr);
  }
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T, score)                                                                \
  template int64_t kth_value_workspace<T, score>(int64_t);                                             \
  template cudaError_t launch_kth_value<T, score>(const std::vector<KthValueSpan<T>>&, int64_t, void*, \
                                                  kth_value_t<T, score>*, cudaStream_t);
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_INSTANTIATE_SCORES(float)
TORCH_IRE_INSTANTIATE_SCORES(double)
TORCH_IRE_INSTANTIATE_SCORES(bfloat16)
TORCH_IRE_INSTANTIATE_SCORES(float16)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
