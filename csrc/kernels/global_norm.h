#pragma once

#include <cstdint>

namespace torch_ire {

// Sum of (w x)^2 over [begin, end), in double and in an order that depends on the range alone; null weights are all
// one.
template <class T>
double sum_of_squares_range_cpu(const T* x, const T* weights, int64_t begin, int64_t end);

}  // namespace torch_ire
