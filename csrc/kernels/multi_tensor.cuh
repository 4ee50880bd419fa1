#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/chunk_plan.h"
#include "kernels/cuda_language.cuh"
#include "kernels/tuning.h"
#include "math/number.h"

// One launch over a list of tensors: what the host packs into the kernel's parameters, how a block finds its chunk in
// them, and how its threads walk over the chunk. No arithmetic of any operator.
namespace torch_ire {

// As many spans as fit into the parameters of a kernel. A Span is one tensor's pointers and its numel.
template <class Span>
struct SpanPack {
  static constexpr int64_t kPerSpan = sizeof(Span) + sizeof(int64_t) + sizeof(uint32_t);
  static constexpr int kMaxSpans = static_cast<int>((kMaxParameterBytes - kScalarBytes - 16) / kPerSpan);

  Span spans[kMaxSpans];
  int64_t begin[kMaxSpans];         // first element of the slice of the tensor that this launch covers
  uint32_t first_block[kMaxSpans];  // number of the slice's first chunk
  int32_t count;
};

// Part of one tensor: `count` elements from `begin` on.
struct Chunk {
  int span;
  int64_t begin;
  int32_t count;
};

template <class Span>
__device__ inline Chunk chunk_of_block(const SpanPack<Span>& pack, uint32_t block) {
  static_assert(sizeof(SpanPack<Span>) + kScalarBytes <= kMaxParameterBytes, "kernel parameters");
  static_assert(kStreamChunk <= INT32_MAX / 2, "32-bit arithmetic inside a chunk");
  int lo = 0;  // the last span whose first block is not after `block`; the same in every thread
  for (int hi = pack.count; hi - lo > 1;) {
    const int middle = (lo + hi) / 2;
    (pack.first_block[middle] <= block ? lo : hi) = middle;
  }
  const int64_t begin = pack.begin[lo] + static_cast<int64_t>(block - pack.first_block[lo]) * kStreamChunk;
  const int64_t left = pack.spans[lo].numel - begin;
  return {lo, begin, static_cast<int32_t>(left < kStreamChunk ? left : kStreamChunk)};
}

// Calls enqueue(pack, blocks) for every launch that the list needs; stops at the first error.
template <class Span, class Enqueue>
cudaError_t for_each_launch(const std::vector<Span>& spans, Enqueue enqueue) {
  std::vector<int64_t> numels(spans.size());
  for (size_t i = 0; i < spans.size(); ++i) numels[i] = spans[i].numel;
  SpanPack<Span> pack;
  for (const ChunkLaunch& launch : plan_chunks(numels, kStreamChunk, SpanPack<Span>::kMaxSpans, kMaxGrid)) {
    uint32_t block = 0;
    pack.count = 0;
    for (const ChunkSlice& slice : launch.slices) {
      pack.spans[pack.count] = spans[slice.tensor];
      pack.begin[pack.count] = slice.begin;
      pack.first_block[pack.count] = block;
      block += static_cast<uint32_t>((slice.end - slice.begin + kStreamChunk - 1) / kStreamChunk);
      ++pack.count;
    }
    enqueue(pack, static_cast<unsigned>(launch.num_chunks));
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// N consecutive elements that move in one access.
template <class T, int N>
struct alignas(sizeof(T) * N) Lanes {
  static_assert(sizeof(T) * N <= 16, "no access is wider than 16 bytes");
  T lane[N];
};

// The machine's access of that many bytes. A store goes through the intrinsic of the default (write-back) policy: nvcc
// splits an assignment of the same width into scalar stores.
template <int kBytes>
struct access;
template <>
struct access<2> {
  using type = unsigned short;
};
template <>
struct access<4> {
  using type = unsigned int;
};
template <>
struct access<8> {
  using type = uint2;
};
template <>
struct access<16> {
  using type = uint4;
};

template <int N, class T>
__device__ inline Lanes<T, N> load_lanes(const T* from) {
  const auto bits = *reinterpret_cast<const typename access<sizeof(T) * N>::type*>(from);
  Lanes<T, N> lanes;
  std::memcpy(&lanes, &bits, sizeof lanes);
  return lanes;
}
template <int N, class T>
__device__ inline void store_lanes(T* to, const Lanes<T, N>& lanes) {
  typename access<sizeof(T) * N>::type bits;
  std::memcpy(&bits, &lanes, sizeof lanes);
  __stwb(reinterpret_cast<decltype(bits)*>(to), bits);
}

// Vectors of an operator are as long as one 16-byte access to its widest type, so that every access of a warp, to the
// narrower types too, is a run of consecutive bytes.
template <class Widest>
constexpr int kLanesOf = 16 / static_cast<int>(sizeof(Widest));

// Whether vectors of N elements can be accessed through the pointer; a null pointer is never accessed.
template <int N, class T>
__device__ inline bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (sizeof(T) * N) == 0;
}

// Bits [i, i + N) of a packed mask, i a multiple of N, N a divisor of 8; a null mask has no flat coordinate.
template <int N>
__device__ inline uint32_t flat_bits(const uint8_t* mask, int64_t i) {
  return mask == nullptr ? 0u : static_cast<uint32_t>(mask[i >> 3]) >> (i & 7) & ((1u << N) - 1u);
}

template <int N>
using width = std::integral_constant<int, N>;

// Calls body(width<N>, i) for vectors of the chunk and body(width<1>, i) for the elements of a ragged tail, or for all
// of them where a tensor is not aligned. A thread's accesses are blockDim.x vectors apart.
template <int N, class Body>
__device__ inline void walk_chunk(const Chunk& chunk, bool aligned, Body body) {
  const int stride = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  const int vectorised = aligned ? chunk.count / N * N : 0;
  for (int j = first * N; j < vectorised; j += stride * N) body(width<N>{}, chunk.begin + j);
  for (int j = vectorised + first; j < chunk.count; j += stride) body(width<1>{}, chunk.begin + j);
}

// Calls body(lanes) for all elements of the chunk of an array that is only read: nothing else is in flight while a
// thread waits, so it asks for several vectors before it looks at the first. Loads under a condition of their own would
// not do: the compiler puts each beside its use.
template <int N, class T, class Body>
__device__ inline void read_chunk(const Chunk& chunk, const T* array, Body body) {
  const int stride = static_cast<int>(blockDim.x);
  const int first = static_cast<int>(threadIdx.x);
  const T* const x = array + chunk.begin;
  const int vectorised = is_aligned<N>(array) ? chunk.count / N * N : 0;
  int j = first * N;
  for (; j + (kVectorsInFlight - 1) * stride * N < vectorised; j += kVectorsInFlight * stride * N) {
    Lanes<T, N> lanes[kVectorsInFlight];
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) lanes[u] = load_lanes<N>(x + j + u * stride * N);
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) body(lanes[u]);
  }
  TORCH_IRE_UNROLL(1)
  for (; j < vectorised; j += stride * N) body(load_lanes<N>(x + j));
  TORCH_IRE_UNROLL(1)
  for (j = vectorised + first; j < chunk.count; j += stride) body(load_lanes<1>(x + j));
}

}  // namespace torch_ire
