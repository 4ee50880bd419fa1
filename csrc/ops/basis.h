#pragma once

#include <torch/csrc/stable/ops.h>

#include "kernels/basis_block.h"
#include "ops/dispatch.h"
#include "ops/parallel.h"

// What the operators on a tall basis share: checks, and sums over a list that do not depend on the number of threads.
namespace torch_ire {

// bases[i]: (m, numel of tensor i), rows without gaps; float32 or bfloat16, or float64 along float64 tensors.
// gram_inverse: (m, m) in the arithmetic's precision. The leading list must be contiguous, for a basis has no strides
// of its own for the coordinates. Returns gram_inverse with its rows one after another.
OptionalTensor check_bases(const char* op, const char* leading_name, const TensorList& leading, const TensorList& bases,
                           const OptionalTensor& gram_inverse);

int64_t row_stride(const Tensor& basis);

template <class B>
BasisSpan<const B> basis_span(const Tensor& basis) {
  return {data_of<B>(basis), row_stride(basis), basis.size(0)};
}

// Calls f(tag of the tensors' type, tag of the bases' type).
template <class F>
void dispatch_with_basis(ScalarType dtype, ScalarType basis_dtype, F&& f) {
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (std::is_same_v<T, double>) {
      f(tag, type_tag<double>{});
    } else {
      if (basis_dtype == ScalarType::BFloat16)
        f(tag, type_tag<bfloat16>{});
      else
        f(tag, type_tag<float>{});
    }
  });
}

// Sum over all chunks of what body(tensor, begin, end, double* out) adds to `count` zeros, in the order of the chunks.
template <class Body>
std::vector<double> sum_over_chunks(const TensorList& list, int64_t count, Body body) {
  const ChunkedList chunks = chunked(list);
  const size_t width = static_cast<size_t>(count);
  std::vector<double> partial(static_cast<size_t>(chunks.num_chunks()) * width, 0.0);
  torch::stable::parallel_for(0, chunks.num_chunks(), 1, [&](int64_t first, int64_t last) {
    chunks.for_each_chunk(first, last, [&](int64_t chunk, size_t i, int64_t begin, int64_t end) {
      body(i, begin, end, partial.data() + static_cast<size_t>(chunk) * width);
    });
  });
  std::vector<double> total(width, 0.0);
  for (size_t c = 0; c < partial.size(); ++c) total[c % (width ? width : 1)] += partial[c];
  return total;
}

// Overlaps as coefficients: multiplied by the inverse Gram matrix where there is one, and rounded.
template <class S>
std::vector<S> coefficients_of(const std::vector<double>& overlaps, const OptionalTensor& gram_inverse) {
  const size_t m = overlaps.size();
  std::vector<S> coefficients(m);
  for (size_t r = 0; r < m; ++r) {
    double sum = overlaps[r];
    if (gram_inverse.has_value()) {
      const S* row = data_of<S>(*gram_inverse) + r * m;
      sum = 0.0;
      for (size_t c = 0; c < m; ++c) sum += static_cast<double>(row[c]) * overlaps[c];
    }
    coefficients[r] = static_cast<S>(sum);
  }
  return coefficients;
}

}  // namespace torch_ire
