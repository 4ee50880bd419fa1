// csrc/kernels/kth_value.cu for the tests, with limits small enough for lists that an emulated GPU can read.
#include <vector>

#include "kernels/kth_value.h"

namespace {

template <class T>
int64_t select(const void* x, int64_t numel, int64_t tensors, int64_t k, const torch_ire::SelectionPlan& plan,
               void* result, int64_t* read) {
  constexpr auto kScore = torch_ire::Score::absolute;
  std::vector<torch_ire::KthValueSpan<T>> spans;
  const T* const elements = static_cast<const T*>(x);
  for (int64_t i = 0; i < tensors; ++i) {
    const int64_t begin = numel / tensors * i;
    spans.push_back({elements + begin, begin, (i + 1 < tensors ? numel / tensors * (i + 1) : numel) - begin});
  }
  const int64_t bytes = torch_ire::kth_value_workspace<T, kScore>(plan);
  std::vector<int64_t> workspace(static_cast<size_t>(bytes / 8 + 1), -1);
  const cudaError_t error =
      torch_ire::launch_kth_value<T, kScore>(spans, k, plan, workspace.data(), static_cast<T*>(result), nullptr);
  if (error != cudaSuccess) return -1;
  const auto& record = *reinterpret_cast<const torch_ire::SelectionRecord*>(workspace.data());
  read[0] = static_cast<int64_t>(record.scouted);
  read[1] = static_cast<int64_t>(record.passes);
  return bytes;
}

}  // namespace

// The k-th smallest magnitude of an array that is cut into `tensors`, and in `read` how many elements were scouted and
// how often the list was read; returns the bytes of the workspace.
extern "C" __attribute__((visibility("default"))) int64_t select_magnitude(const void* x, int64_t bytes_of_element,
                                                                           int64_t numel, int64_t tensors, int64_t k,
                                                                           int64_t max_sample, int64_t key_bytes,
                                                                           void* result, int64_t* read) {
  const torch_ire::SelectionLimits limits{1024, max_sample, key_bytes};
  switch (bytes_of_element) {
    case 8: {
      const auto plan = torch_ire::plan_kth_value<double, torch_ire::Score::absolute>(numel, limits);
      return select<double>(x, numel, tensors, k, plan, result, read);
    }
    case 2: {
      const auto plan = torch_ire::plan_kth_value<torch_ire::bfloat16, torch_ire::Score::absolute>(numel, limits);
      return select<torch_ire::bfloat16>(x, numel, tensors, k, plan, result, read);
    }
    default: {
      const auto plan = torch_ire::plan_kth_value<float, torch_ire::Score::absolute>(numel, limits);
      return select<float>(x, numel, tensors, k, plan, result, read);
    }
  }
}

// What csrc/kernels/selection_plan.h plans for a list: (samples, capacity, kept, scouted_every).
extern "C" __attribute__((visibility("default"))) void selection_plan(int64_t total, int64_t bytes_of_key,
                                                                      int64_t* out) {
  const torch_ire::SelectionPlan plan = torch_ire::plan_selection(total, bytes_of_key);
  out[0] = plan.samples;
  out[1] = plan.capacity;
  out[2] = plan.kept;
  out[3] = plan.scouted_every;
}
