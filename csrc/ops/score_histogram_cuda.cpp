#include "kernels/score_histogram_cuda.h"

#include <torch/csrc/stable/ops.h>

#include "ops/context_cuda.h"
#include "ops/library.h"
#include "ops/score_histogram.h"

namespace torch_ire {
namespace {

Tensor score_histogram_cuda(const TensorList& tensors, const Tensor& prefix, int64_t shift,
                            const std::string& score_name, bool wide) {
  const Score score = check_score_histogram(tensors, prefix, shift, score_name, wide);
  const CudaContext context(prefix);
  const Tensor counts = torch::stable::new_empty(prefix, {kBuckets}, ScalarType::Long);
  // without a tensor any dtype gives the zeros
  const ScalarType dtype = tensors.empty() ? ScalarType::Float : tensors[0].scalar_type();
  dispatch_keys(dtype, score, wide, [&](auto type, auto what, auto width) {
    using T = typename decltype(type)::type;
    std::vector<ScoreHistogramSpan<T>> spans(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) spans[i] = {data_of<T>(tensors[i]), tensors[i].numel()};
    check_cuda("score_histogram", launch_score_histogram<T, decltype(what)::score, typename decltype(width)::key>(
                                      spans, static_cast<int>(shift), data_of<int64_t>(prefix),
                                      data_of<int64_t>(counts), context.stream()));
  });
  return counts;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("score_histogram", TORCH_BOX(&score_histogram_cuda));
}

}  // namespace torch_ire
