#include "kernels/global_norm.h"

#include "kernels/cpu_block.h"
#include "kernels/instantiate.h"

namespace torch_ire {
namespace {

// Squares of float32 in double neither round nor overflow, and the loop still waits for memory.
template <class T>
TORCH_IRE_INLINE double range(const T* x, const T* weights, int64_t begin, int64_t end) {
  double total = 0.0;
  for_each_block(begin, end, [&](int64_t i, int64_t count) TORCH_IRE_INLINE_LAMBDA {
    double squares[kBlockElems];
    const T* __restrict block = x + i;
    if (weights == nullptr) {
      for (int64_t j = 0; j < count; ++j) {
        const double v = static_cast<double>(to_opmath(block[j]));
        squares[j] = v * v;
      }
    } else {
      const T* __restrict w = weights + i;
      for (int64_t j = 0; j < count; ++j) {
        const double v = static_cast<double>(to_opmath(block[j])) * static_cast<double>(to_opmath(w[j]));
        squares[j] = v * v;
      }
    }
    for (int64_t j = count; j < kBlockElems; ++j) squares[j] = 0.0;
    total += tree_sum(squares, kBlockElems);
  });
  return total;
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                                  \
  template <>                                                                                                     \
  TORCH_IRE_CLONES double sum_of_squares_range_cpu<T>(const T* x, const T* weights, int64_t begin, int64_t end) { \
    return range(x, weights, begin, end);                                                                         \
  }
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
