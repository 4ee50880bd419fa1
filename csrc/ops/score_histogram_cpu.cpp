#include "kernels/score_histogram.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "ops/parallel.h"
#include "ops/score_histogram.h"

namespace torch_ire {
namespace {

Tensor score_histogram_cpu(const TensorList& tensors, const Tensor& prefix, int64_t shift,
                           const std::string& score_name, bool wide) {
  const Score score = check_score_histogram(tensors, prefix, shift, score_name, wide);
  Tensor result = torch::stable::new_empty(prefix, {kBuckets}, ScalarType::Long);
  int64_t* const counts = data_of<int64_t>(result);
  std::fill_n(counts, kBuckets, int64_t{0});
  if (tensors.empty()) return result;
  const ChunkedList chunks = chunked(tensors);
  std::mutex mutex;
  dispatch_keys(tensors[0].scalar_type(), score, wide, [&](auto type, auto what, auto width) {
    using T = typename decltype(type)::type;
    using Key = typename decltype(width)::key;
    const auto digit = KeyDigit<Key>::at(static_cast<int>(shift), *data_of<int64_t>(prefix));
    torch::stable::parallel_for(0, chunks.num_chunks(), 8, [&](int64_t first, int64_t last) {
      std::vector<int64_t> counters(kCounters, 0);
      chunks.for_each_tensor(first, last, [&](size_t i, int64_t begin, int64_t end) {
        score_histogram_range_cpu<T, decltype(what)::score, Key>(data_of<T>(tensors[i]), begin, end, digit,
                                                                 counters.data());
      });
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t c = 0; c < kBuckets * kCounterTurns; ++c) counts[c / kCounterTurns] += counters[c];
    });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {
  m.impl("score_histogram", TORCH_BOX(&score_histogram_cpu));
}

}  // namespace torch_ire
