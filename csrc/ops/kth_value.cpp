#include "kernels/kth_value.h"

#include <string>

#include "ops/exact_selection.h"
#include "ops/library.h"
#include "ops/score.h"

namespace torch_ire {
namespace {

// Returns what is ranked.
Score check_kth_value(const TensorList& tensors, int64_t k, const std::string& score, const OptionalTensor& hint) {
  constexpr const char* op = "kth_value";
  check_leading_list(op, "tensors", tensors);
  if (hint.has_value()) check_score_scalar(op, "hint", *hint, tensors[0]);
  const Score parsed = parse_score(op, score);
  check_rank(op, k, tensors);
  return parsed;
}

Tensor kth_value_cpu(const TensorList& tensors, int64_t k, const std::string& score_name, const OptionalTensor& hint) {
  const Score score = check_kth_value(tensors, k, score_name, hint);
  const ScalarType dtype = tensors[0].scalar_type();
  Tensor result = torch::stable::new_empty(tensors[0], {}, score_dtype(dtype, score));
  const std::optional<double> guess = hint.has_value() ? std::optional(scalar_value(*hint)) : std::nullopt;
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    store_score<T, ranked>(result, exact_selection_cpu<T, ranked>(tensors, k, guess));
  });
  return result;
}

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// The k-th smallest score (k from 1) of all tensors. `hint`, a guess at the answer, changes the time alone.
TORCH_IRE_OPERATOR("kth_value", "(Tensor[] tensors, int k, *, str score=\"value\", Tensor? hint=None) -> Tensor",
                   kth_value_cpu, kth_value_cuda)

}  // namespace torch_ire
