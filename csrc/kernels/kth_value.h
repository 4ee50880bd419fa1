#pragma once

#include <cstdint>

#include "math/score_key.h"
#include "math/selection.h"

namespace torch_ire {

// A key strictly inside the bracket of a pass: its bucket and its offset from the start of its chunk.
constexpr int kOffsetBits = 16;
constexpr uint32_t gathered_entry(uint32_t bucket, uint32_t offset) {
  return bucket << kOffsetBits | offset;
}
constexpr int64_t bucket_of(uint32_t entry) {
  return entry >> kOffsetBits;
}
constexpr int64_t offset_of(uint32_t entry) {
  return entry & ((uint32_t{1} << kOffsetBits) - 1);
}

// One pass over the chunk x[begin, end), at most 2^16 elements; begin is a multiple of 64. Writes an entry for each key
// strictly inside the bracket to `inside`, which has room for two more than there are elements, and returns how many;
// adds the number of keys up to the bracket's low end to `up_to_low`, and, unless `flat_mask` is null, marks them
// there: bits [begin, end) of the tensor's mask, the unused bits of the last byte 0.
template <class T, Score score>
int64_t bracket_pass_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                               int64_t& up_to_low, uint32_t* inside, uint8_t* flat_mask);

// Adds the numbers of keys of x[begin, end) below the bracket's low end and up to its high end.
template <class T, Score score>
void count_ends_range_cpu(const T* x, int64_t begin, int64_t end, const Bracket<score_key_t<T, score>>& bracket,
                          int64_t& below_low, int64_t& up_to_high);

}  // namespace torch_ire
