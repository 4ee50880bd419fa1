#include <torch/csrc/stable/library.h>

#include "ops/exact_selection.h"
#include "ops/kth_value.h"

namespace torch_ire {
namespace {

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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("kth_value", TORCH_BOX(&kth_value_cpu));
}

}  // namespace torch_ire
