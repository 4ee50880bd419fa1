#pragma once

#include <cstdint>

namespace torch_ire {

// Packed state: one array holds a segment for each parameter, in list order. Each segment begins at a multiple of 64
// bytes and holds its elements in the memory order of the parameter; the padding behind it belongs to nobody. So no
// cache line and no vector of a kernel spans two parameters. python/torch_ire/packed_state.py repeats this rule.
constexpr int64_t kSegmentBytes = 64;

// Elements that a segment of `numel` elements takes, padding included.
constexpr int64_t segment_elems(int64_t numel, int64_t itemsize) {
  const int64_t unit = kSegmentBytes / itemsize;
  return (numel + unit - 1) / unit * unit;
}

}  // namespace torch_ire
