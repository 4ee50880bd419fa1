#include "ops/kth_value.h"

#include "ops/exact_selection_cuda.h"
#include "ops/library.h"

namespace torch_ire {
namespace {

// The hint is not used: the sample's bracket costs little beside the pass over the list.
Tensor kth_value_cuda(const TensorList& tensors, int64_t k, const std::string& score_name, const OptionalTensor& hint) {
  const Score score = check_kth_value(tensors, k, score_name, hint);
  const CudaContext context(tensors[0]);
  const ScalarType dtype = tensors[0].scalar_type();
  const Tensor result = torch::stable::new_empty(tensors[0], {}, score_dtype(dtype, score));
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    exact_selection_cuda<T, decltype(what)::score>("kth_value", tensors, k, result, context);
  });
  return result;
}

}  // namespace

TORCH_IRE_CUDA_OPERATORS(m) {
  m.impl("kth_value", TORCH_BOX(&kth_value_cuda));
}

}  // namespace torch_ire
