#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/instantiate.h"
#include "kernels/kth_value.h"
#include "kernels/multi_tensor.cuh"
#include "kernels/radix_select.cuh"
#include "math/counter_rng.h"

namespace torch_ire {
namespace {

// Keys that a block holds back to append them to the gathered ones together.
constexpr int kHeld = 1024;
constexpr int kSelectThreads = 1024;
// What is scouted at a time: the least that the memory of a GPU delivers at speed.
constexpr int kSegmentBytes = 64;
// After scouting, the counted bracket is so many times as wide as the part of it that is gathered.
constexpr double kCountedToKept = 4.0;

using Count = unsigned long long;

// Squares are in the order of magnitudes, which have cheaper keys: the magnitude is selected and squared. A float64 is
// rounded first, so its square has keys of its own.
template <class T, Score score>
constexpr Score kRanked = score == Score::square && !std::is_same_v<T, double> ? Score::absolute : score;

template <class T, Score ranked>
constexpr Bracket<score_key_t<T, ranked>> all_keys() {
  using Key = score_key_t<T, ranked>;
  return {std::numeric_limits<Key>::min() >> kEmptyKeyBits<T, ranked>,
          std::numeric_limits<Key>::max() >> kEmptyKeyBits<T, ranked>};
}

// In device memory, first in the workspace.
template <class Key>
struct KthState {
  SelectionRecord record;
  Bracket<Key> all;      // ends of what keys there can be
  Bracket<Key> bracket;  // is counted, each end by itself
  Bracket<Key> kept;     // what of the bracket's inside is gathered, ends included
  KeyRange<Key> range;   // where the answer is, after the pass over the list
  Count below, at_low, at_high, within, gathered;
  Count counts[kBuckets];
  bool gathers;
  bool from_gathered;  // whether the range's keys are all among the gathered ones
};
static_assert(offsetof(KthState<int32_t>, record) == 0 && offsetof(KthState<int64_t>, record) == 0, "first");

template <class Key>
struct Workspace {
  KthState<Key>* state;
  Key* keys;  // the sample, afterwards the gathered ones
  int64_t capacity;
};

// The keys strictly between the ends, or else one end, which is counted elsewhere.
template <class Key>
__device__ inline KeyRange<Key> inner_keys(const Bracket<Key>& b) {
  const bool some = inner_width(b) > 0;
  return {static_cast<Key>(b.low + some), static_cast<Key>(some ? b.high - 1 : b.low), 0};
}

// grid: any, striding over the samples; the samples that lie in other launches' tensors are left to those
template <class T, Score ranked>
__global__ void __launch_bounds__(kStreamThreads)
    sample_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, int64_t samples, int64_t total,
                  score_key_t<T, ranked>* sample) {
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
    sample[j] = dense_key<ranked>(pack.spans[lo].x[position - pack.spans[lo].first]);
  }
}

// grid: one block. Ranks from 1; outside the sample they mean that nothing bounds the answer on this side.
template <class Key>
__global__ void __launch_bounds__(kSelectThreads)
    bracket_kernel(Bracket<Key> all, int64_t samples, int64_t low_rank, int64_t high_rank, const Key* sample,
                   KthState<Key>* state) {
  KeyRange<Key> ends[2] = {{all.low, all.low, 1}, {all.high, all.high, 1}};
  if (low_rank >= 1) ends[0] = {all.low, all.high, low_rank};
  if (high_rank <= samples) ends[1] = {all.low, all.high, high_rank};
  select_two_in_block(sample, samples, ends);
  if (threadIdx.x != 0) return;
  const Bracket<Key> bracket{ends[0].low, ends[1].low};
  const KeyRange<Key> inner = inner_keys(bracket);
  state->all = all;
  state->bracket = bracket;
  state->kept = {inner.low, inner.high};
  state->gathers = inner.shift() > 0;  // otherwise a bucket is one key
}

// Counts of a pass in shared memory, added to those of the state.
template <class Key>
__device__ inline void add_counts(const unsigned* counts, KthState<Key>* state) {
  __syncthreads();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x)
    if (counts[b] != 0) atomicAdd(&state->counts[b], static_cast<Count>(counts[b]));
}

// The sum over the threads of a block, added to a count of the state.
__device__ inline void add_count(Count of_thread, Count* to) {
  const Count sum = block_sum(of_thread);
  if (threadIdx.x == 0 && sum != 0) atomicAdd(to, sum);
}

// grid: kReduceBlocks or fewer, striding over the chunks; block: whole warps. Counts, in one segment of every `every`,
// what is at most the bracket's low end and what is inside. The segment is drawn at random from each stretch.
template <class T, Score ranked>
__global__ void __launch_bounds__(kStreamThreads)
    scout_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, uint32_t chunks, uint32_t every,
                 KthState<score_key_t<T, ranked>>* state) {
  using Key = score_key_t<T, ranked>;
  constexpr int kLanes = kLanesOf<T>;
  constexpr int kSegment = kSegmentBytes / static_cast<int>(sizeof(T));
  constexpr int kVectors = kSegment / kLanes;
  TORCH_IRE_SHARED(unsigned[kBuckets], counts);
  const Bracket<Key> bracket = state->bracket;
  const KeyRange<Key> inner = inner_keys(bracket);
  const int shift = inner.shift();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[b] = 0;
  __syncthreads();

  Count scouted = 0, up_to_low = 0;
  const int stretch = static_cast<int>(every) * kSegment;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    const KthValueSpan<T>& span = pack.spans[chunk.span];
    const T* const x = span.x + chunk.begin;
    const bool aligned = is_aligned<kLanes>(span.x);
    const int vectors = (chunk.count + stretch - 1) / stretch * kVectors;
    for (int v = static_cast<int>(threadIdx.x); v < vectors; v += static_cast<int>(blockDim.x)) {
      const int begin = v / kVectors * stretch;
      const uint64_t number = static_cast<uint64_t>(span.first + chunk.begin + begin) / kSegment;
      const uint32_t random = mix32(static_cast<uint32_t>(number) ^ mix32(static_cast<uint32_t>(number >> 32)));
      const int segment = static_cast<int>((static_cast<uint64_t>(random) * every) >> 32);
      const int j = begin + segment * kSegment + v % kVectors * kLanes;
      const auto count = [&](T element) {
        const Key key = dense_key<ranked>(element);
        ++scouted;
        up_to_low += key <= bracket.low;
        if (bracket.low < key && key < bracket.high) atomicAdd(&counts[inner.offset(key) >> shift], 1u);
      };
      if (aligned && j + kLanes <= chunk.count) {
        const Lanes<T, kLanes> lanes = load_lanes<kLanes>(x + j);
        for (const T element : lanes.lane) count(element);
      } else {
        for (int lane = 0; lane < kLanes && j + lane < chunk.count; ++lane) count(x[j + lane]);
      }
    }
  }
  add_counts(counts, state);
  add_count(scouted, &state->record.scouted);
  add_count(up_to_low, &state->below);
}

// grid: one block. From the scouts' counts: the part of the bracket that there is room for, around the answer, is kept,
// and the bracket closes in on it.
template <class Key>
__global__ void __launch_bounds__(kStreamThreads)
    keep_kernel(double quantile, int64_t total, int64_t kept, int64_t capacity, KthState<Key>* state) {
  const KeyRange<Key> inner = inner_keys(state->bracket);
  Count inside = 0;
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) inside += state->counts[b];
  inside = block_sum(inside);
  const double scouted = static_cast<double>(state->record.scouted);
  const double share = scouted / static_cast<double>(total);
  const double center = quantile * scouted - static_cast<double>(state->below);
  __syncthreads();
  if (threadIdx.x == 0) state->below = 0;
  if (inside == 0) return;  // there is nothing to close in on
  const double half = 0.5 * static_cast<double>(kept) * share;
  const double all_inside = static_cast<double>(inside);
  const auto bucket_of = [&](double rank) {
    return find_bucket(state->counts, static_cast<int64_t>(fmin(fmax(rank, 1.0), all_inside)));
  };
  const FoundBucket first = bucket_of(center - half), last = bucket_of(center + half);
  const double low_rank = center - kCountedToKept * half, high_rank = center + kCountedToKept * half;
  const FoundBucket low = bucket_of(low_rank), high = bucket_of(high_rank);
  if (threadIdx.x == 0) {
    state->kept = {inner.narrowed(first.bucket, 0).low, inner.narrowed(last.bucket, 0).high};
    if (low_rank >= 1.0) state->bracket.low = inner.narrowed(low.bucket, 0).low;
    if (high_rank <= all_inside) state->bracket.high = inner.narrowed(high.bucket, 0).high;
    const int64_t up_to_last = last.before + static_cast<int64_t>(state->counts[last.bucket]);
    const double expected = static_cast<double>(up_to_last - first.before) / share;
    state->gathers = inner_keys(state->bracket).shift() > 0 && expected <= static_cast<double>(capacity);
  }
  __syncthreads();
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) state->counts[b] = 0;
}

// grid: kReduceBlocks or fewer, striding over the chunks; block: whole warps. Counts the keys below the bracket, at its
// ends and inside, and gathers those to keep.
template <class T, Score ranked>
__global__ void __launch_bounds__(kStreamThreads, kStreamBlocks<T>)
    bracket_pass_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, uint32_t chunks,
                        TORCH_IRE_GRID_CONSTANT(Workspace<score_key_t<T, ranked>>) workspace) {
  using Key = score_key_t<T, ranked>;
  constexpr int kLanes = kLanesOf<T>;
  TORCH_IRE_SHARED(unsigned[kBuckets], counts);
  TORCH_IRE_SHARED(Key[kHeld], held);
  TORCH_IRE_SHARED(unsigned, num_held);
  TORCH_IRE_SHARED(Count, position);
  KthState<Key>* const state = workspace.state;
  const Bracket<Key> bracket = state->bracket;
  const Bracket<Key> kept = state->kept;
  const Count capacity = static_cast<Count>(workspace.capacity);
  const KeyRange<Key> inner = inner_keys(bracket);
  const KeyRange<Key> closed{bracket.low, bracket.high, 0};
  const unsigned_key_t<Key> width = closed.offset(bracket.high);
  const int shift = inner.shift();
  bool gathers = state->gathers;
  for (unsigned b = threadIdx.x; b < kBuckets; b += blockDim.x) counts[b] = 0;
  if (threadIdx.x == 0) num_held = 0;
  __syncthreads();

  const auto gather = [&](Key key) {
    const unsigned at = atomicAdd(&num_held, 1u);
    if (at < kHeld) {
      held[at] = key;
    } else {
      const Count to = atomicAdd(&state->gathered, Count{1});
      if (to < capacity) workspace.keys[to] = key;
    }
  };
  Count below = 0, at_low = 0, at_high = 0, within = 0;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    unsigned below_here = 0, at_low_here = 0, at_high_here = 0, within_here = 0;
    read_chunk<kLanes>(chunk, pack.spans[chunk.span].x, [&](const auto& lanes) {
      constexpr int N = static_cast<int>(sizeof(lanes.lane) / sizeof(T));
      Key keys[N];
      bool some = false;
      TORCH_IRE_UNROLL(N)
      for (int lane = 0; lane < N; ++lane) {
        keys[lane] = dense_key<ranked>(lanes.lane[lane]);
        below_here += keys[lane] < bracket.low;
        some |= closed.offset(keys[lane]) <= width;
      }
      if (!some) return;  // as a rule
      TORCH_IRE_UNROLL(N)
      for (int lane = 0; lane < N; ++lane) {
        const Key key = keys[lane];
        if (closed.offset(key) > width) continue;
        ++within_here;
        if (key == bracket.low) {
          ++at_low_here;
        } else if (key == bracket.high) {
          ++at_high_here;
        } else {
          atomicAdd(&counts[inner.offset(key) >> shift], 1u);
          if (gathers && kept.low <= key && key <= kept.high) gather(key);
        }
      }
    });
    below += below_here;
    at_low += at_low_here;
    at_high += at_high_here;
    within += within_here;
    if (!gathers) continue;  // the same for all threads
    __syncthreads();
    const bool last = block + gridDim.x >= chunks;
    const unsigned full = num_held < kHeld ? num_held : kHeld;
    if (full >= kHeld / 2 || last) {
      if (threadIdx.x == 0) position = atomicAdd(&state->gathered, static_cast<Count>(full));
      __syncthreads();
      for (unsigned h = threadIdx.x; h < full; h += blockDim.x)
        if (position + h < capacity) workspace.keys[position + h] = held[h];
      gathers = position + full <= capacity;  // what does not fit is of no use
      if (threadIdx.x == 0) num_held = 0;
    }
    __syncthreads();
  }
  add_counts(counts, state);
  add_count(below, &state->below);
  add_count(at_low, &state->at_low);
  add_count(at_high, &state->at_high);
  add_count(within, &state->within);
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
  const int64_t up_to_low = below + static_cast<int64_t>(state->at_low);
  const int64_t up_to_high = below + static_cast<int64_t>(state->within);
  const int64_t below_high = up_to_high - static_cast<int64_t>(state->at_high);
  const bool is_inside = k > up_to_low && k <= below_high;
  if (threadIdx.x == 0) {
    KeyRange<Key> range{b.low, b.low, 1};
    if (k <= below) {
      range = {state->all.low, static_cast<Key>(b.low - 1), k};
    } else if (is_inside) {
      range = inner_keys(b);
      range.rank = k - up_to_low;
    } else if (k > up_to_high) {
      range = {static_cast<Key>(b.high + 1), state->all.high, k - up_to_high};
    } else if (k > up_to_low) {
      range = {b.high, b.high, 1};
    }
    state->range = range;
    state->record.passes = 1;
  }
  __syncthreads();
  if (is_inside) {
    narrow(state);
  } else {
    for (unsigned i = threadIdx.x; i < kBuckets; i += blockDim.x) state->counts[i] = 0;
  }
  if (threadIdx.x == 0)
    state->from_gathered = is_inside && state->gathers && static_cast<int64_t>(state->gathered) <= capacity &&
                           state->kept.low <= state->range.low && state->range.high <= state->kept.high;
}

// grid: kReduceBlocks or fewer, striding over the gathered keys (in the first launch of a pass) or over the chunks
template <class T, Score ranked>
__global__ void __launch_bounds__(kStreamThreads)
    radix_pass_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<KthValueSpan<T>>) pack, uint32_t chunks, bool first_launch,
                      TORCH_IRE_GRID_CONSTANT(Workspace<score_key_t<T, ranked>>) workspace) {
  using Key = score_key_t<T, ranked>;
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
    for (int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<int64_t>(state->gathered); i += stride)
      count(workspace.keys[i]);
  } else {
    for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
      const Chunk chunk = chunk_of_block(pack, block);
      read_chunk<kLanes>(chunk, pack.spans[chunk.span].x, [&](const auto& lanes) {
        for (const T element : lanes.lane) count(dense_key<ranked>(element));
      });
    }
  }
  add_counts(counts, state);
}

// grid: one block. `result` is null but in the last pass.
template <class T, Score score>
__global__ void __launch_bounds__(kStreamThreads)
    narrow_kernel(KthState<score_key_t<T, kRanked<T, score>>>* state, kth_value_t<T, score>* result) {
  if (state->range.low != state->range.high) {
    if (threadIdx.x == 0 && !state->from_gathered) ++state->record.passes;
    narrow(state);
  }
  if (threadIdx.x != 0 || result == nullptr) return;
  const auto value = from_dense_key<T, kRanked<T, score>>(state->range.low);
  if constexpr (score == kRanked<T, score>)
    *result = round_nearest<kth_value_t<T, score>>::from(value);
  else
    *result = value * value;
}

template <class Key>
Workspace<Key> workspace_at(void* memory, const SelectionPlan& plan) {
  KthState<Key>* const state = static_cast<KthState<Key>*>(memory);
  return {state, reinterpret_cast<Key*>(state + 1), plan.capacity};
}

unsigned blocks_for(unsigned chunks) {
  return chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
}

// Finds the bracket and what of it is kept: from a sample where the list is long, from scouts where it is longer.
template <class T, Score ranked>
cudaError_t launch_bracket(const std::vector<KthValueSpan<T>>& spans, int64_t k, const SelectionPlan& plan,
                           const Workspace<score_key_t<T, ranked>>& workspace, cudaStream_t stream) {
  using Key = score_key_t<T, ranked>;
  int64_t low_rank = 0, high_rank = 1;  // nothing bounds the answer
  if (plan.samples > 0) {
    const cudaError_t error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned) {
      const unsigned blocks = static_cast<unsigned>((plan.samples + kStreamThreads - 1) / kStreamThreads);
      TORCH_IRE_LAUNCH((sample_kernel<T, ranked>), blocks, kStreamThreads, 0, stream, pack, plan.samples, plan.total,
                       workspace.keys);
    });
    if (error != cudaSuccess) return error;
    const SampleRank rank = sample_rank(k, plan.total, plan.samples);
    low_rank = static_cast<int64_t>(std::floor(rank.center - kDeviations * rank.deviation));
    high_rank = static_cast<int64_t>(std::ceil(rank.center + kDeviations * rank.deviation)) + 1;
  }
  TORCH_IRE_LAUNCH(bracket_kernel<Key>, 1u, kSelectThreads, 0, stream, all_keys<T, ranked>(), plan.samples, low_rank,
                   high_rank, workspace.keys, workspace.state);
  if (plan.scouted_every > 0) {
    const cudaError_t error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned chunks) {
      TORCH_IRE_LAUNCH((scout_kernel<T, ranked>), blocks_for(chunks), kStreamThreads, 0, stream, pack, chunks,
                       static_cast<uint32_t>(plan.scouted_every), workspace.state);
    });
    if (error != cudaSuccess) return error;
    const double quantile = (static_cast<double>(k) - 0.5) / static_cast<double>(plan.total);
    TORCH_IRE_LAUNCH(keep_kernel<Key>, 1u, kStreamThreads, 0, stream, quantile, plan.total, plan.kept, plan.capacity,
                     workspace.state);
  }
  return cudaGetLastError();
}

}  // namespace

template <class T, Score score>
int64_t kth_value_workspace(const SelectionPlan& plan) {
  using Key = score_key_t<T, kRanked<T, score>>;
  return static_cast<int64_t>(sizeof(KthState<Key>)) + plan.capacity * static_cast<int64_t>(sizeof(Key));
}

template <class T, Score score>
cudaError_t launch_kth_value(const std::vector<KthValueSpan<T>>& spans, int64_t k, const SelectionPlan& plan,
                             void* memory, kth_value_t<T, score>* result, cudaStream_t stream) {
  constexpr Score ranked = kRanked<T, score>;
  using Key = score_key_t<T, ranked>;
  const Workspace<Key> workspace = workspace_at<Key>(memory, plan);
  cudaError_t error = cudaMemsetAsync(workspace.state, 0, sizeof(KthState<Key>), stream);
  if (error == cudaSuccess) error = launch_bracket<T, ranked>(spans, k, plan, workspace, stream);
  if (error != cudaSuccess) return error;
  error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned chunks) {
    TORCH_IRE_LAUNCH((bracket_pass_kernel<T, ranked>), blocks_for(chunks), kStreamThreads, 0, stream, pack, chunks,
                     workspace);
  });
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(conclude_kernel<Key>, 1u, kStreamThreads, 0, stream, k, workspace.capacity, workspace.state);

  // Every pass takes kBucketBits off the width of the range, which is nearly all keys where the bracket missed.
  constexpr int kKeyBits = 8 * static_cast<int>(sizeof(Key)) - kEmptyKeyBits<T, ranked>;
  constexpr int kPasses = (kKeyBits + kBucketBits - 1) / kBucketBits;
  for (int pass = 1; pass <= kPasses; ++pass) {
    bool first_launch = true;
    error = for_each_launch(spans, [&](const SpanPack<KthValueSpan<T>>& pack, unsigned chunks) {
      TORCH_IRE_LAUNCH((radix_pass_kernel<T, ranked>), blocks_for(chunks), kStreamThreads, 0, stream, pack, chunks,
                       first_launch, workspace);
      first_launch = false;
    });
    if (error != cudaSuccess) return error;
    TORCH_IRE_LAUNCH((narrow_kernel<T, score>), 1u, kStreamThreads, 0, stream, workspace.state,
                     pass == kPasses ? result : nullptr);
  }
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T, score)                                                                               \
  template int64_t kth_value_workspace<T, score>(const SelectionPlan&);                                               \
  template cudaError_t launch_kth_value<T, score>(const std::vector<KthValueSpan<T>>&, int64_t, const SelectionPlan&, \
                                                  void*, kth_value_t<T, score>*, cudaStream_t);
#define TORCH_IRE_INSTANTIATE_SCORES(T)     \
  TORCH_IRE_INSTANTIATE(T, Score::value)    \
  TORCH_IRE_INSTANTIATE(T, Score::absolute) \
  TORCH_IRE_INSTANTIATE(T, Score::square)
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE_SCORES)
#undef TORCH_IRE_INSTANTIATE_SCORES
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
