#include "kernels/found_nonfinite.h"

#include <torch/csrc/stable/library.h>

#include <atomic>

#include "ops/dispatch.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

Tensor found_nonfinite_cpu(const TensorList& tensors) {
  check_leading_list("found_nonfinite", "tensors", tensors);
  std::atomic<bool> any{false};
  dispatch_floating(tensors[0].scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_over_list(tensors, [&](size_t i, int64_t begin, int64_t end) {
      if (found_nonfinite_range_cpu<T>(data_of<T>(tensors[i]), begin, end)) any.store(true, std::memory_order_relaxed);
    });
  });
  Tensor found = torch::stable::new_empty(tensors[0], {}, ScalarType::Float);
  *data_of<float>(found) = any.load() ? 1.0f : 0.0f;
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("found_nonfinite", TORCH_BOX(&found_nonfinite_cpu));
}

}  // namespace torch_ire
