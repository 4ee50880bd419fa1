#include "kernels/sample_labels_cuda.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "math/counter_rng.h"
#include "ops/context_cuda.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/sample_labels.h"

namespace torch_ire {
namespace {

std::tuple<Tensor, Tensor> sample_labels_cuda(const Tensor& logits, int64_t seed, int64_t offset) {
  check_sample_labels(logits);
  const CudaContext context(logits);
  LabelRows rows{};
  rows.dims = static_cast<int32_t>(logits.dim() - 1);
  rows.count = 1;
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < rows.dims; ++d) {
    sizes.push_back(logits.size(d));
    rows.sizes[d] = logits.size(d);
    rows.strides[d] = logits.stride(d);
    rows.count *= logits.size(d);
  }
  rows.classes = logits.size(rows.dims);
  rows.class_stride = logits.stride(rows.dims);
  const Tensor labels = torch::stable::new_empty(logits, sizes, ScalarType::Long);
  const Tensor logsumexp = torch::stable::new_empty(logits, sizes, opmath_dtype(logits.scalar_type()));
  const uint64_t key = mix64(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    check_cuda("sample_labels", launch_sample_labels(data_of<T>(logits), rows, key, data_of<int64_t>(labels),
                                                     data_of<opmath_t<T>>(logsumexp), context.stream()));
  });
  return {labels, logsumexp};
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("sample_labels", TORCH_BOX(&sample_labels_cuda));
}

}  // namespace torch_ire
