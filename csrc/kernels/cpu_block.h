#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/stored_param.h"
#include "kernels/target_clones.h"
#include "math/counter_rng.h"
#include "math/number.h"

// The pieces that the CPU loops over one tensor share. A loop works on blocks small enough for the first-level cache,
// so that a half-precision result is rounded in a loop of its own which the compiler can vectorise.
namespace torch_ire {

constexpr int64_t kBlockElems = 512;

// Calls body(i, count) for the blocks of [begin, end); begin is a multiple of 8, hence so is every i.
template <class Body>
TORCH_IRE_INLINE void for_each_block(int64_t begin, int64_t end, Body body, int64_t block = kBlockElems) {
  for (int64_t i = begin; i < end; i += block) body(i, std::min(block, end - i));
}

// Bytes to the bits of a mask: bytes 0 or 1, a multiple of 8 of them, as bits. Three shifts bring the lowest bits of
// eight bytes together, and shifts of 64-bit words vectorise where a multiplication would not.
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

// Stores a block of results, elements [i, i + count) of the tensor, rounded to nearest.
template <class T>
TORCH_IRE_INLINE void store_block(T* out, int64_t i, int64_t count, const opmath_t<T>* values) {
  for (int64_t j = 0; j < count; ++j) out[i + j] = round_nearest<T>::from(values[j]);
}

// Where the steps of a list's tensor begin: theta of elements [i, i + count).
template <class T>
TORCH_IRE_INLINE void load_param(const StoredParam<T>& param, Rounding rounding, int64_t i, int64_t count,
                                 opmath_t<T>* values) {
  const T* from = param.theta_from + i;
  if (rounding == Rounding::kKahan) {
    const T* c = param.compensation + i;
    for (int64_t j = 0; j < count; ++j) values[j] = kahan_value(from[j], c[j]);
  } else if (rounding == Rounding::kMaster) {
    const opmath_t<T>* master = param.master + i;
    for (int64_t j = 0; j < count; ++j) values[j] = master_value(from[j], master[j]);
  } else {
    for (int64_t j = 0; j < count; ++j) values[j] = to_opmath(from[j]);
  }
}

// Where they end, for a block of at most kBlockElems. `key` is that of stochastic rounding.
template <class T>
TORCH_IRE_INLINE void store_param(const StoredParam<T>& param, Rounding rounding, uint64_t key, int64_t i,
                                  int64_t count, const opmath_t<T>* values) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (rounding == Rounding::kStochastic) {
      for (int64_t j = 0; j < count; ++j) param.theta[i + j] = round_stochastic(values[j], random_bits(key, i + j));
      return;
    }
  }
  if (rounding == Rounding::kKahan) {
    T* __restrict theta = param.theta + i;
    T* __restrict compensation = param.compensation + i;
    for (int64_t j = 0; j < count; ++j) {
      const uint16_t bits = static_cast<uint16_t>(round_nearest<T>::bits(values[j]));
      const float rest = kahan_rest(values[j], T{bits});
      theta[j].bits = bits;
      compensation[j].bits = static_cast<uint16_t>(round_nearest<T>::number_bits(rest));
    }
    return;
  }
  if (rounding == Rounding::kMaster) std::copy(values, values + count, param.master + i);
  store_block(param.theta, i, count, values);
}

// theta[i] <- step(i, theta[i], flat bit of i) for the coordinates of [begin, end). A null mask has no flat coordinate.
// `step` reads element i of its arrays and may write element i of others, nothing else: iterations are independent.
template <class T, class Step>
TORCH_IRE_INLINE void update_range(const StoredParam<T>& param, Rounding rounding, uint64_t key, const uint8_t* mask,
                                   int64_t begin, int64_t end, Step step) {
  for_each_block(
      begin, end,
      [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
        opmath_t<T> buffer[kIsRounded<T> ? kBlockElems : 1];
        opmath_t<T>* out = buffer;
        const opmath_t<T>* from = buffer;
        if constexpr (kIsRounded<T>) {
          load_param(param, rounding, i, count, buffer);
        } else {  // nothing to round, so no buffer in between
          out = param.theta + i;
          from = param.theta_from + i;
        }
        if (mask == nullptr) {
#pragma GCC ivdep
          for (int64_t j = 0; j < count; ++j) out[j] = step(i + j, from[j], false);
        } else {
          // 32 bits of the mask at a time stay in a register: a vector of them is compared, not loaded
          const uint8_t* bytes = mask + i / 8;
          int64_t first = 0;
          for (; first + 32 <= count; first += 32) {
            uint32_t word;
            std::memcpy(&word, bytes + first / 8, sizeof word);
#pragma GCC ivdep
            for (int32_t j = 0; j < 32; ++j)
              out[first + j] = step(i + first + j, from[first + j], ((word >> j) & 1u) != 0);
          }
          for (int64_t j = first; j < count; ++j) out[j] = step(i + j, from[j], ((bytes[j / 8] >> (j % 8)) & 1) != 0);
        }
        if constexpr (kIsRounded<T>) store_param(param, rounding, key, i, count, out);
      },
      kIsRounded<T> ? kBlockElems : std::max<int64_t>(end - begin, 1));
}

}  // namespace torch_ire
