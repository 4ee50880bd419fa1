#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/clones.h"
#include "math/counter_rng.h"
#include "math/number.h"

// The pieces that the CPU loops over one tensor share. A loop works on blocks small enough for the first-level cache,
// so that the bits of the mask become one byte a coordinate, and a half-precision result is rounded, in loops of their
// own which the compiler can vectorise.
namespace torch_ire {

constexpr int64_t kBlockElems = 512;

// Calls body(i, count) for the blocks of [begin, end); begin is a multiple of 8, hence so is every i.
template <class Body>
TORCH_IRE_INLINE void for_each_block(int64_t begin, int64_t end, Body body) {
  for (int64_t i = begin; i < end; i += kBlockElems) body(i, std::min(kBlockElems, end - i));
}

// bits [i, i + count) of a packed mask as bytes 0 or 1; a null mask has no flat coordinate.
TORCH_IRE_INLINE void expand_mask(const uint8_t* mask, int64_t i, int64_t count, uint8_t* flat) {
  if (mask == nullptr) {
    for (int64_t j = 0; j < count; ++j) flat[j] = 0;
    return;
  }
  const uint8_t* bytes = mask + i / 8;
  const int64_t full = count / 8;
  for (int64_t b = 0; b < full; ++b)
    for (int64_t j = 0; j < 8; ++j) flat[8 * b + j] = static_cast<uint8_t>((bytes[b] >> j) & 1);
  for (int64_t j = 8 * full; j < count; ++j) flat[j] = static_cast<uint8_t>((bytes[j / 8] >> (j % 8)) & 1);
}

// The inverse: bytes 0 or 1, a multiple of 8 of them, as bits. Three shifts bring the lowest bits of eight bytes
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

}  // namespace torch_ire
