#include "kernels/kth_value.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <mutex>
#include <string>

#include "math/counter_rng.h"
#include "ops/cuda_stream.h"
#include "ops/library.h"
#include "ops/parallel.h"
#include "ops/score.h"

namespace torch_ire {
namespace {

// Returns what is ranked.
Score check_kth_value(const TensorList& tensors, int64_t k, const std::string& score, const OptionalTensor& hint) {
  constexpr const char* op = "kth_value";
  check_leading_list(op, "tensors", tensors);
  if (hint.has_value()) check_score_scalar(op, "hint", *hint, tensors[0]);
  const Score parsed = parse_score(op, score);
  int64_t total = 0;
  for (const Tensor& tensor : tensors) total += tensor.numel();
  TORCH_IRE_CHECK(k >= 1 && k <= total, op, "k: expected 1 <= k <= ", total, ", the number of elements, got ", k);
  return parsed;
}

constexpr int64_t kSampleBytes = 512 << 10;
constexpr int64_t kGatheredBytes = 2 << 20;
// Below this many coordinates one pass gathers them all.
constexpr int64_t kSampledElems = 32768;

// Half the width of the bracket, in standard deviations of the sample's rank. The first misses about once in a
// thousand; the second misses only where the sample is unlucky beyond reason, and after it nothing is taken from the
// sample any more.
constexpr double kDeviations[] = {3.3, 12.0};
// A hint whose rank in the sample is this near to where it should be is believed to be nearer than the sample can tell.
constexpr double kHintDeviations = 1.0;

// Exact selection over one list of tensors.
template <class T, Score score>
class Selection {
  using Key = score_key_t<T, score>;

 public:
  Selection(const TensorList& tensors, int64_t k)
      : tensors_(tensors),
        chunks_(tensors),
        k_(k),
        workspace_(torch::stable::new_empty(tensors[0], {kSampleBytes + kGatheredBytes}, ScalarType::Byte)),
        sample_(data_of<Key>(workspace_)),
        gathered_(sample_ + kSampleBytes / static_cast<int64_t>(sizeof(Key))) {
    for (const Tensor& tensor : tensors) total_ += tensor.numel();
  }

  Key run(const std::optional<Key>& hint) {
    if (total_ > kSampledElems) draw_sample();
    for (size_t attempt = 0;; ++attempt) {
      const Bracket<Key> bracket = next_bracket(attempt, hint);
      pass(bracket);
      if (const std::optional<Key> found = conclude(bracket)) return *found;
    }
  }

 private:
  static constexpr int64_t kGathered = kGatheredBytes / static_cast<int64_t>(sizeof(Key));
  static constexpr int64_t kSample = kSampleBytes / static_cast<int64_t>(sizeof(Key));

  // One coordinate at random from each of equal stretches of the list. The positions are a function of the sizes alone.
  void draw_sample() {
    std::vector<int64_t> first(tensors_.size() + 1, 0);
    for (size_t i = 0; i < tensors_.size(); ++i) first[i + 1] = first[i] + tensors_[i].numel();
    std::vector<const T*> data(tensors_.size());
    for (size_t i = 0; i < tensors_.size(); ++i) data[i] = data_of<T>(tensors_[i]);
    num_samples_ = sample_size(total_, kSample);
    torch::stable::parallel_for(0, num_samples_, 1024, [&](int64_t begin, int64_t end) {
      size_t i = 0;
      for (int64_t j = begin; j < end; ++j) {
        const double random = mix32(static_cast<uint32_t>(j)) * 0x1p-32;
        const int64_t position = sample_position(j, num_samples_, total_, random);
        while (position >= first[i + 1]) ++i;
        sample_[j] = score_key<score>(data[i][position - first[i]]);
      }
    });
  }

  Key sample_quantile(double rank) {
    if (rank < 0.0) return known_.low;
    if (rank >= static_cast<double>(num_samples_)) return known_.high;
    Key* nth = sample_ + static_cast<int64_t>(rank);
    std::nth_element(sample_, nth, sample_ + num_samples_);
    return *nth;
  }

  Bracket<Key> next_bracket(size_t attempt, const std::optional<Key>& hint) {
    if (num_samples_ == 0 || attempt >= std::size(kDeviations)) return known_;
    SampleRank rank = sample_rank(k_, total_, num_samples_);
    double half_width = kDeviations[attempt] * rank.deviation;
    if (attempt == 0 && hint.has_value()) {
      const double hint_rank =
          static_cast<double>(std::count_if(sample_, sample_ + num_samples_, [&](Key key) { return key < *hint; }));
      if (std::fabs(hint_rank - rank.center) <= kHintDeviations * rank.deviation) {
        rank.center = hint_rank;
        half_width = kHintDeviations * rank.deviation;
      }
    }
    const Bracket<Key> bracket{std::max(known_.low, sample_quantile(std::floor(rank.center - half_width) - 1.0)),
                               std::min(known_.high, sample_quantile(std::ceil(rank.center + half_width)))};
    return bracket.low <= bracket.high ? bracket : known_;
  }

  // Count up to the low end, histogram of the keys inside, and the keys themselves as far as there is room. Which
  // thread gathers a key first changes their order in the buffer, and nothing else.
  void pass(const Bracket<Key>& bracket) {
    up_to_low_ = 0;
    inside_ = 0;
    histogram_.assign(kBuckets, 0);
    const int shift = bucket_shift(bracket);
    std::mutex mutex;
    torch::stable::parallel_for(0, chunks_.num_chunks(), 2, [&](int64_t first, int64_t last) {
      int64_t up_to_low = 0;
      std::vector<int64_t> histogram(kBuckets, 0);
      Key inside[kChunkElems + 1];  // the pass may write one past what it finds
      chunks_.for_each_chunk(first, last, [&](int64_t, size_t i, int64_t begin, int64_t end) {
        const int64_t found =
            bracket_pass_range_cpu<T, score>(data_of<T>(tensors_[i]), begin, end, bracket, up_to_low, inside);
        for (int64_t j = 0; j < found; ++j) ++histogram[inner_offset(bracket, inside[j]) >> shift];
        const int64_t at = inside_.fetch_add(found);
        if (at + found <= kGathered) std::copy(inside, inside + found, gathered_ + at);
      });
      const std::lock_guard<std::mutex> lock(mutex);
      up_to_low_ += up_to_low;
      for (int64_t b = 0; b < kBuckets; ++b) histogram_[b] += histogram[b];
    });
  }

  int64_t count_up_to(Key key) const {
    std::atomic<int64_t> total{0};
    torch::stable::parallel_for(0, chunks_.num_chunks(), 2, [&](int64_t first, int64_t last) {
      chunks_.for_each_tensor(first, last, [&](size_t i, int64_t begin, int64_t end) {
        total += count_up_to_range_cpu<T, score>(data_of<T>(tensors_[i]), begin, end, key);
      });
    });
    return total;
  }

  // The answer, or a smaller `known_`.
  std::optional<Key> conclude(const Bracket<Key>& bracket) {
    if (k_ <= up_to_low_) {
      if (k_ > count_up_to(bracket.low - 1)) return bracket.low;
      known_.high = bracket.low - 1;
      return std::nullopt;
    }
    int64_t rank = k_ - up_to_low_;
    if (rank > inside_) {
      if (k_ <= count_up_to(bracket.high)) return bracket.high;
      known_.low = bracket.high + 1;
      return std::nullopt;
    }
    int64_t bucket = 0;
    for (; rank > histogram_[bucket]; ++bucket) rank -= histogram_[bucket];
    known_ = bucket_keys(bracket, bucket, bucket_shift(bracket));
    num_samples_ = 0;  // a bucket is smaller than the sample can resolve
    if (known_.low == known_.high) return known_.low;
    if (inside_ > kGathered) return std::nullopt;
    Key* end = std::partition(gathered_, gathered_ + inside_,
                              [&](Key key) { return known_.low <= key && key <= known_.high; });
    std::nth_element(gathered_, gathered_ + rank - 1, end);
    return gathered_[rank - 1];
  }

  const TensorList& tensors_;
  const ChunkedList chunks_;
  const int64_t k_;
  int64_t total_ = 0;
  Tensor workspace_;
  Key* sample_;
  int64_t num_samples_ = 0;
  Key* gathered_;
  int64_t up_to_low_ = 0;
  std::atomic<int64_t> inside_{0};
  std::vector<int64_t> histogram_;
  Bracket<Key> known_{std::numeric_limits<Key>::min(), std::numeric_limits<Key>::max()};  // the answer is in here
};

Tensor kth_value_cpu(const TensorList& tensors, int64_t k, const std::string& score_name, const OptionalTensor& hint) {
  const Score score = check_kth_value(tensors, k, score_name, hint);
  const ScalarType dtype = tensors[0].scalar_type();
  Tensor result = torch::stable::new_empty(tensors[0], {}, score_dtype(dtype, score));
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using T = typename decltype(type)::type;
    constexpr Score ranked = decltype(what)::score;
    using S = score_t<T, ranked>;
    std::optional<ordered_key_t<S>> hint_key;
    if (hint.has_value()) hint_key = ordered_key(static_cast<S>(scalar_value(*hint)));
    const S kth = from_ordered_key<S>(Selection<T, ranked>(tensors, k).run(hint_key));
    if constexpr (ranked == Score::square)
      *data_of<float>(result) = kth;
    else
      *data_of<T>(result) = round_nearest<T>::from(kth);
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
    constexpr Score ranked = decltype(what)::score;
    std::vector<KthValueSpan<T>> spans(tensors.size());
    int64_t total = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      spans[i] = {data_of<T>(tensors[i]), total, tensors[i].numel()};
      total += tensors[i].numel();
    }
    const SelectionPlan plan = plan_kth_value<T, ranked>(total);
    const Tensor workspace =
        torch::stable::new_empty(tensors[0], {kth_value_workspace<T, ranked>(plan)}, ScalarType::Byte);
    check_cuda("kth_value", launch_kth_value<T, ranked>(spans, k, plan, workspace.data_ptr(),
                                                        data_of<kth_value_t<T, ranked>>(result), context.stream()));
  });
  return result;
}

#endif

}  // namespace

// the k-th smallest score (k from 1) over all tensors; `hint` is a guess at the answer that can only change the time
TORCH_IRE_OPERATOR("kth_value", "(Tensor[] tensors, int k, *, str score=\"value\", Tensor? hint=None) -> Tensor",
                   kth_value_cpu, kth_value_cuda)

}  // namespace torch_ire
