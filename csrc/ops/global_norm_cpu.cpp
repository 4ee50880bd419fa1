#include "kernels/global_norm.h"

#include <torch/csrc/stable/library.h>

#include <cmath>

#include "ops/dispatch.h"
#include "ops/global_norm.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

Tensor global_norm_cpu(const TensorList& tensors, const TensorList& weights) {
  check_global_norm(tensors, weights);
  const ChunkedList chunks = chunked(tensors);
  std::vector<double> partial(static_cast<size_t>(chunks.num_chunks()));
  dispatch_floating(tensors[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    torch::stable::parallel_for(0, chunks.num_chunks(), 2, [&](int64_t first, int64_t last) {
      chunks.for_each_chunk(first, last, [&](int64_t chunk, size_t i, int64_t begin, int64_t end) {
        partial[static_cast<size_t>(chunk)] =
            sum_of_squares_range_cpu<T>(data_of<T>(tensors[i]), data_or_null<T>(weights, i), begin, end);
      });
    });
  });
  double total = 0.0;
  for (const double p : partial) total += p;  // in the order of the chunks, whichever thread computed them

  const ScalarType dtype = opmath_dtype(tensors[0].scalar_type());
  Tensor norm = torch::stable::new_empty(tensors[0], {}, dtype);
  if (dtype == ScalarType::Double)
    *data_of<double>(norm) = std::sqrt(total);
  else
    *data_of<float>(norm) = static_cast<float>(std::sqrt(total));
  return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("global_norm", TORCH_BOX(&global_norm_cpu));
}

}  // namespace torch_ire
