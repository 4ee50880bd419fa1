#pragma once

#include <cstdint>

#include "math/score.h"

namespace torch_ire {

// Bits [begin, end) of one tensor's mask; begin is a multiple of 8. The unused bits of the last byte are cleared.
template <class T, Score score>
void flat_mask_range_cpu(uint8_t* flat_mask, const T* scores, score_t<T, score> largest_flat, int64_t begin,
                         int64_t end);

}  // namespace torch_ire
