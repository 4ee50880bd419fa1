#include "kernels/score_histogram.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "math/key_digit.h"
#include "math/score_key.h"
#include "ops/cuda_stream.h"
#include "ops/library.h"
#include "ops/parallel.h"
#include "ops/score.h"

namespace torch_ire {
namespace {

// Returns what is ranked. The list may be empty: a process without tensors
// takes part in a ranking with zeros.
Score check_score_histogram(const TensorList& tensors, const Tensor& prefix, int64_t shift, const std::string& score,
                            bool wide) {
  constexpr const char* op = "score_histogram";
  if (!tensors.empty()) check_leading_list(op, "tensors", tensors);
  TORCH_IRE_CHECK(prefix.scalar_type() == ScalarType::Long && prefix.numel() == 1, op,
                  "prefix: expected one int64 number, got ", name_of(prefix.scalar_type()), " of shape ",
                  shape_of(prefix));
  TORCH_IRE_CHECK(tensors.empty() || prefix.device() == tensors[0].device(), op, "prefix: expected device ",
                  device_name(tensors[0]), ", got ", device_name(prefix));
  const Score parsed = parse_score(op, score);
  const bool float64 =
      wide || (!tensors.empty() && score_dtype(opmath_dtype(tensors[0].scalar_type()), parsed) == ScalarType::Double);
  // an empty list may belong to a ranking of either width
  const int bits = float64 || tensors.empty() ? 64 : 32;
  TORCH_IRE_CHECK(shift >= 0 && shift < bits, op, "shift: expected 0 <= shift < ", bits, ", got ", shift);
  return parsed;
}

template <class T>
struct key_tag {
  using key = T;
};

// Calls f(type_tag<T>{}, score_tag<score>{}, key_tag<Key>{}).
template <class F>
void dispatch_keys(ScalarType dtype, Score score, bool wide, F&& f) {
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using Own = score_key_t<typename decltype(type)::type, decltype(what)::score>;
    if (wide)
      f(type, what, key_tag<int64_t>{});
    else
      f(type, what, key_tag<Own>{});
  });
}

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

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace

// counts[b] = number of keys with (key >> shift >> 11) == prefix and digit (key >> shift) & 2047 == b; at the top,
// where no bits are left for a prefix, b = 1024 + (key >> shift). Keys have 32 bits in the order of float32, or 64 in
// the order of float64 if `wide` is set or the score is float64.
TORCH_IRE_OPERATOR("score_histogram",
                   "(Tensor[] tensors, Tensor prefix, *, int shift, str score=\"value\", bool wide=False) -> Tensor",
                   score_histogram_cpu, score_histogram_cuda)

}  // namespace torch_ire
