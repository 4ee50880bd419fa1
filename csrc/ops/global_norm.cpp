#include "kernels/global_norm.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>

#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

void check_global_norm(const TensorList& tensors, const TensorList& weights) {
  constexpr const char* op = "global_norm";
  check_leading_list(op, "tensors", tensors);
  check_list_like(op, "weights", weights, "tensors", tensors, tensors[0].scalar_type(), /*optional=*/true);
}

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

#ifdef TORCH_IRE_WITH_CUDA

Tensor global_norm_cuda(const TensorList& tensors, const TensorList& weights) {
  check_global_norm(tensors, weights);
  const CudaContext context(tensors[0]);
  const ScalarType dtype = tensors[0].scalar_type();
  const Tensor norm = torch::stable::new_empty(tensors[0], {}, opmath_dtype(dtype));
  dispatch_floating(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<GlobalNormSpan<T>> spans(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i)
      spans[i] = {data_of<T>(tensors[i]), data_or_null<T>(weights, i), tensors[i].numel()};
    const Tensor partials =
        torch::stable::new_empty(tensors[0], {global_norm_partials<T>(tensors.size())}, ScalarType::Double);
    check_cuda("global_norm", launch_global_norm(spans, !weights.empty(), data_of<double>(partials),
                                                 data_of<opmath_t<T>>(norm), context.stream()));
  });
  return norm;
}

#endif

}  // namespace

// sqrt(sum x^2) or, if weights are given, sqrt(sum (w x)^2).
TORCH_IRE_OPERATOR("global_norm", "(Tensor[] tensors, Tensor[] weights) -> Tensor", global_norm_cpu, global_norm_cuda)

}  // namespace torch_ire
