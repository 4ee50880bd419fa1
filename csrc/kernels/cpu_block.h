#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/clones.h"
#include "math/counter_rng.h"
#include "math/number.h"

// The pieces that the CPU loops over one tensor share. A loop works on blocks small enough for the first-level cache,
// so that the bits of the mask become one integer a coordinate, and a half-precision result is rounded, in loops of
// their own which the compiler can vectorise.
namespace torch_ire {

constexpr int64_t kBlockElems = 512;

// Calls body(i, count) for the blocks of [begin, end); begin is a multiple of 8, hence so is every i.
template <class Body>
TORCH_IRE_INLINE void for_each_block(int64_t begin, int64_t end, Body body) {
  for (int64_t i = begin; i < end; i += kBlockElems) body(i, std::min(kBlockElems, end - i));
}

// Bits [i, i + count) of a packed mask as integers, not 0 where set. They are as wide as a float, so that comparing and
// blending need no widening, and 8 of them come from one byte by a broadcast and a comparison. i is a multiple of 8;
// the bits of a last byte behind count are written too.
TORCH_IRE_INLINE void expand_mask(const uint8_t* mask, int64_t i, int64_t count, int32_t* flat) {
  typedef int32_t lanes __attribute__((vector_size(32)));
  const lanes bit = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint8_t* bytes = mask + i / 8;
  for (int64_t b = 0; b < (count + 7) / 8; ++b) {
    const int32_t byte = bytes[b];
    const lanes selected = lanes{byte, byte, byte, byte, byte, byte, byte, byte} & bit;
    std::memcpy(flat + 8 * b, &selected, sizeof selected);
  }
}

// Back to bits: bytes 0 or 1, a multiple of 8 of them, as bits. Three shifts bring the lowest bits of eight bytes
// together, and shifts of 64-bit words vectorise where a multiplication would not.
TORCH_IRE_INLINE void pack_flags(const uint8_t* flags, int64_t count, uint8_t* bits) {
  for (int64_t b = 0; b < count / 8; ++b) {
    uint64_t word;
    std::memcpy(&word, flags + 8 * b, sizeof word);
    word |= word >> 7;
    word |= word >> 14;
    word |= word >> 28;
    bits[b] = static_cast<uint8_t>(word);
  }
}

// Sum of n numbers, n a power of two, halving the list until one is left: the loops vectorise without reordering
// anything, and the rounding error grows with log n. Overwrites the list.
template <class S>
TORCH_IRE_INLINE S tree_sum(S* values, int64_t n) {
  for (int64_t half = n / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) values[j] += values[j + half];
  return values[0];
}

// Stores a block of results, elements [i, i + count) of the tensor, rounded to T: to nearest, or stochastically where
// the tensor has a key.
template <class T>
TORCH_IRE_INLINE void store_block(T* out, int64_t i, int64_t count, const opmath_t<T>* values, bool stochastic,
                                  uint64_t key) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (stochastic) {
      for (int64_t j = 0; j < count; ++j) out[i + j] = round_stochastic(values[j], random_bits(key, i + j));
      return;
    }
  }
  for (int64_t j = 0; j < count; ++j) out[i + j] = round_nearest<T>::from(values[j]);
}

// theta[i] <- step(i, flat bit of i) for the coordinates of [begin, end). A null mask has no flat coordinate. `step`
// reads element i of its arrays and may write element i of others, nothing else: iterations are independent.
template <class T, class Step>
TORCH_IRE_INLINE void update_range(T* theta, const uint8_t* mask, int64_t begin, int64_t end, bool stochastic,
                                   uint64_t key, Step step) {
  constexpr bool kInPlace = std::is_same_v<T, opmath_t<T>>;  // nothing to round, so no buffer in between
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    opmath_t<T> buffer[kInPlace ? 1 : kBlockElems];
    opmath_t<T>* out = buffer;
    if constexpr (kInPlace) out = theta + i;
    if (mask == nullptr) {
#pragma GCC ivdep
      for (int64_t j = 0; j < count; ++j) out[j] = step(i + j, false);
    } else {
      int32_t flat[kBlockElems];
      expand_mask(mask, i, count, flat);
#pragma GCC ivdep
      for (int64_t j = 0; j < count; ++j) out[j] = step(i + j, flat[j] != 0);
    }
    if constexpr (!kInPlace) store_block(theta, i, count, out, stochastic, key);
  });
}

}  // namespace torch_ire
