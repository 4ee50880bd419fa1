#pragma once

#include <cstdint>

namespace torch_ire {

// Whether any element of [begin, end) is infinite or NaN.
template <class T>
bool found_nonfinite_range_cpu(const T* x, int64_t begin, int64_t end);

}  // namespace torch_ire
