#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/chunked_list.h"
#include "kernels/flat_mask.h"
#include "kernels/kth_value.h"
#include "math/counter_rng.h"

// The k-th smallest of a list of tensors on the CPU, and the mask of what it does not exceed, in about one read.
//
// A sample of m of n coordinates brackets the answer between two of its own numbers. One pass counts what lies below
// the bracket and gathers the few that lie inside as a bucket (11 bits) and a place (16 bits); the counts of the
// buckets say which one holds the answer, and its keys are read once more. The pass marks what lies below the bracket
// in the masks, so that only the gathered coordinates remain to be marked once the answer is known.
//
// Where the answer was not inside, or more were than there is room for, further passes narrow the range of keys by a
// factor of 2048 each.
namespace torch_ire {

constexpr int64_t kSampleBytes = 256 << 10;
// 3 MiB: 2 d n sqrt(p (1 - p) / m) with d as below, for 32-bit keys enough up to n = 9.6e7 at p = 0.8.
constexpr int64_t kEntries = 768 << 10;
constexpr int64_t kSelectionBytes = kSampleBytes + kEntries * static_cast<int64_t>(sizeof(uint32_t));
// Below this many coordinates one pass gathers them all.
constexpr int64_t kSampledElems = 32768;

// Half the width of the bracket, in standard deviations of the sample's rank. The first misses about once in a hundred:
// a miss costs a pass, and what lies inside costs about half a pass. The second misses only where the sample is unlucky
// beyond reason, and after it nothing is taken from the sample any more.
constexpr double kBracketDeviations[] = {2.6, 12.0};
// A hint whose rank in the sample is this near to where it should be is believed to be nearer than the sample can tell.
constexpr double kHintDeviations = 1.0;

// Exact selection over one list of tensors. `parallel(n, grain, body)` calls body(first, last) for parts of [0, n).
template <class T, Score score, class Parallel>
class ExactSelection {
  using Key = score_key_t<T, score>;

 public:
  // `data` has one pointer per tensor of `chunks`; `workspace` kSelectionBytes, aligned to 8; `flat_masks` one packed
  // mask per tensor, to be written, or nothing.
  ExactSelection(std::vector<const T*> data, const ChunkedList& chunks, int64_t k, void* workspace, Parallel parallel,
                 std::vector<uint8_t*> flat_masks = {})
      : data_(std::move(data)),
        flat_masks_(std::move(flat_masks)),
        chunks_(chunks),
        k_(k),
        parallel_(std::move(parallel)),
        sample_(static_cast<Key*>(workspace)),
        entries_(reinterpret_cast<uint32_t*>(static_cast<char*>(workspace) + kSampleBytes)),
        gathered_(static_cast<size_t>(chunks.num_chunks())) {
    for (const int64_t numel : chunks_.numels()) total_ += numel;
  }

  Key run(const std::optional<Key>& hint) {
    if (total_ > kSampledElems) draw_sample();
    for (size_t attempt = 0;; ++attempt) {
      const Bracket<Key> bracket = next_bracket(attempt, hint);
      pass(bracket);
      if (const std::optional<Answer> answer = conclude(bracket)) {
        if (!flat_masks_.empty()) finish_masks(*answer);
        return answer->key;
      }
    }
  }

 private:
  static constexpr int64_t kSample = kSampleBytes / static_cast<int64_t>(sizeof(Key));
  // A score is flat if it is finite. Marking what is below a bracket takes that scores are not negative.
  static constexpr bool kMarks = score != Score::value;

  // The gathered coordinates of one chunk for which there was room.
  struct Gathered {
    int64_t at = 0, count = 0;
  };
  // `bucket` of the answer, and all lower ones, have what the pass did not mark; empty: what it marked is of no use.
  struct Answer {
    Key key;
    std::optional<int64_t> bucket;
  };

  static Key largest_finite() { return score_key<Score::value>(std::numeric_limits<score_t<T, score>>::max()); }

  // One coordinate at random from each of equal stretches of the list. The positions are a function of the sizes alone.
  void draw_sample() {
    std::vector<int64_t> first(data_.size() + 1, 0);
    for (size_t i = 0; i < data_.size(); ++i) first[i + 1] = first[i] + chunks_.numels()[i];
    num_samples_ = sample_size(total_, kSample);
    parallel_(num_samples_, 1024, [&](int64_t begin, int64_t end) {
      size_t i = 0;
      for (int64_t j = begin; j < end; ++j) {
        const double random = mix32(static_cast<uint32_t>(j)) * 0x1p-32;
        const int64_t position = sample_position(j, num_samples_, total_, random);
        while (position >= first[i + 1]) ++i;
        sample_[j] = score_key<score>(data_[i][position - first[i]]);
      }
    });
  }

  Bracket<Key> next_bracket(size_t attempt, const std::optional<Key>& hint) {
    Bracket<Key> bracket = known_;
    bool tied = attempt > 0;
    if (num_samples_ > 0 && attempt < std::size(kBracketDeviations)) {
      Key* const end = sample_ + num_samples_;
      SampleRank rank = sample_rank(k_, total_, num_samples_);
      double half_width = kBracketDeviations[attempt] * rank.deviation;
      if (attempt == 0 && hint.has_value()) {
        const double hint_rank = static_cast<double>(std::count_if(sample_, end, [&](Key key) { return key < *hint; }));
        if (std::fabs(hint_rank - rank.center) <= kHintDeviations * rank.deviation) {
          rank.center = hint_rank;
          half_width = kHintDeviations * rank.deviation;
        }
      }
      const int64_t low = static_cast<int64_t>(std::floor(rank.center - half_width)) - 1;
      const int64_t high = static_cast<int64_t>(std::ceil(rank.center + half_width));
      Bracket<Key> sampled = known_;
      if (low >= 0) {
        std::nth_element(sample_, sample_ + low, end);
        sampled.low = std::max(known_.low, sample_[low]);
      }
      if (high < num_samples_) {
        std::nth_element(sample_ + std::max<int64_t>(low, 0), sample_ + high, end);
        sampled.high = std::min(known_.high, sample_[high]);
      }
      if (sampled.low <= sampled.high) bracket = sampled;
      tied |= std::count(sample_, end, bracket.low) > 1 || std::count(sample_, end, bracket.high) > 1;
    }
    // Nothing is below the lowest key or above the highest one.
    const bool whole =
        bracket.low == std::numeric_limits<Key>::min() && bracket.high == std::numeric_limits<Key>::max();
    reads_ends_ = tied && !whole;
    knows_ends_ = tied || whole;
    return bracket;
  }

  // Count up to the low end, numbers of keys in the buckets inside, and where these keys are as far as there is room.
  // Which thread gathers a chunk first changes the order of the chunks in the buffer, and nothing else.
  void pass(const Bracket<Key>& bracket) {
    up_to_low_ = 0;
    below_low_ = 0;
    up_to_high_ = reads_ends_ ? 0 : total_;
    inside_ = 0;
    histogram_.assign(kBuckets, 0);
    marked_ = kMarks && !flat_masks_.empty() && bracket.low <= largest_finite();
    std::mutex mutex;
    parallel_(chunks_.num_chunks(), 2, [&](int64_t first, int64_t last) {
      int64_t up_to_low = 0;
      int64_t below_low = 0;
      int64_t up_to_high = 0;
      std::vector<int64_t> histogram(kBuckets, 0);
      const auto count = [&](uint32_t entry) { ++histogram[static_cast<size_t>(bucket_of(entry))]; };
      uint32_t inside[kChunkElems + 2];
      chunks_.for_each_chunk(first, last, [&](int64_t chunk, size_t i, int64_t begin, int64_t end) {
        uint8_t* const flat_mask = marked_ ? flat_masks_[i] : nullptr;
        const int64_t found =
            bracket_pass_range_cpu<T, score>(data_[i], begin, end, bracket, up_to_low, inside, flat_mask);
        if (reads_ends_) count_ends_range_cpu<T, score>(data_[i], begin, end, bracket, below_low, up_to_high);
        const int64_t at = inside_.fetch_add(found);
        if (at + found <= kEntries) {
          gathered_[static_cast<size_t>(chunk)] = {at, found};
          std::copy(inside, inside + found, entries_ + at);
        } else {
          gathered_[static_cast<size_t>(chunk)] = {at, 0};
          for (int64_t j = 0; j < found; ++j) count(inside[j]);
        }
      });
      // after the pass, which keeps no room for the counters in the first-level cache
      for (int64_t chunk = first; chunk < last; ++chunk) for_each_entry(chunk, count);
      const std::lock_guard<std::mutex> lock(mutex);
      up_to_low_ += up_to_low;
      below_low_ += below_low;
      if (reads_ends_) up_to_high_ += up_to_high;
      for (size_t b = 0; b < static_cast<size_t>(kBuckets); ++b) histogram_[b] += histogram[b];
    });
  }

  // The answer, or a smaller `known_`.
  std::optional<Answer> conclude(const Bracket<Key>& bracket) {
    if (k_ <= up_to_low_) {
      if (knows_ends_ && k_ > below_low_) return Answer{bracket.low, -1};
      known_.high = knows_ends_ ? bracket.low - 1 : bracket.low;
      return std::nullopt;
    }
    int64_t rank = k_ - up_to_low_;
    if (rank > inside_) {
      if (knows_ends_ && k_ <= up_to_high_) return Answer{bracket.high, std::nullopt};
      known_.low = knows_ends_ ? bracket.high + 1 : bracket.high;
      return std::nullopt;
    }
    int64_t bucket = 0;
    for (; rank > histogram_[static_cast<size_t>(bucket)]; ++bucket) rank -= histogram_[static_cast<size_t>(bucket)];
    const int64_t candidates = histogram_[static_cast<size_t>(bucket)];
    const bool all_gathered = inside_ <= kEntries;
    known_ = bucket_keys(bracket, bucket, bucket_shift(bracket));
    num_samples_ = 0;  // a bucket is smaller than the sample can resolve
    if (known_.low == known_.high) return Answer{known_.low, all_gathered ? std::optional(bucket) : std::nullopt};
    if (!all_gathered || candidates > kSample) return std::nullopt;
    Key* end = sample_;  // which is not needed any more
    chunks_.for_each_chunk(0, chunks_.num_chunks(), [&](int64_t chunk, size_t i, int64_t begin, int64_t) {
      for_each_entry(chunk, [&](uint32_t entry) {
        if (bucket_of(entry) == bucket) *end++ = score_key<score>(data_[i][begin + offset_of(entry)]);
      });
    });
    std::nth_element(sample_, sample_ + rank - 1, end);
    return Answer{sample_[rank - 1], bucket};
  }

  template <class Body>
  void for_each_entry(int64_t chunk, Body body) const {
    const Gathered& gathered = gathered_[static_cast<size_t>(chunk)];
    for (int64_t j = gathered.at; j < gathered.at + gathered.count; ++j) body(entries_[j]);
  }

  void finish_masks(const Answer& answer) const {
    if (marked_ && answer.bucket.has_value() && answer.key <= largest_finite()) {
      const int64_t bucket = *answer.bucket;
      if (bucket < 0) return;
      parallel_(chunks_.num_chunks(), 16, [&](int64_t first, int64_t last) {
        chunks_.for_each_chunk(first, last, [&](int64_t chunk, size_t i, int64_t begin, int64_t) {
          for_each_entry(chunk, [&](uint32_t entry) {
            const int64_t at = begin + offset_of(entry);
            const bool flat = bucket_of(entry) < bucket ||
                              (bucket_of(entry) == bucket && score_key<score>(data_[i][at]) <= answer.key);
            flat_masks_[i][at / 8] |= static_cast<uint8_t>(int{flat} << (at % 8));
          });
        });
      });
      return;
    }
    using S = score_t<T, score>;
    const S largest_flat = largest_flat_score<S>(static_cast<double>(from_ordered_key<S>(answer.key)));
    parallel_(chunks_.num_chunks(), 2, [&](int64_t first, int64_t last) {
      chunks_.for_each_tensor(first, last, [&](size_t i, int64_t begin, int64_t end) {
        flat_mask_range_cpu<T, score>(flat_masks_[i], data_[i], largest_flat, begin, end);
      });
    });
  }

  const std::vector<const T*> data_;
  const std::vector<uint8_t*> flat_masks_;
  const ChunkedList& chunks_;
  const int64_t k_;
  const Parallel parallel_;
  int64_t total_ = 0;
  Key* const sample_;
  int64_t num_samples_ = 0;
  uint32_t* const entries_;
  std::vector<Gathered> gathered_;
  bool reads_ends_ = false;
  bool knows_ends_ = false;
  bool marked_ = false;
  int64_t up_to_low_ = 0;
  int64_t below_low_ = 0;
  int64_t up_to_high_ = 0;
  std::atomic<int64_t> inside_{0};
  std::vector<int64_t> histogram_;
  Bracket<Key> known_{std::numeric_limits<Key>::min(), std::numeric_limits<Key>::max()};  // the answer is in here
};

}  // namespace torch_ire
