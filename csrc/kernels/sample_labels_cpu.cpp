#include "kernels/instantiate.h"
#include "kernels/sample_labels.h"

#include <cmath>
#include <limits>

#include "kernels/cpu_block.h"
#include "math/exp.h"

namespace torch_ire {
namespace {

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

// Blocks are filled up to a power of two with classes that are never drawn, so that halving reductions need no tail.
TORCH_IRE_INLINE int64_t padded_width(int64_t count) {
  int64_t width = 1;
  while (width < count) width *= 2;
  return width;
}

// One block of a row in working precision.
template <class T>
TORCH_IRE_INLINE void load_block(const T* logits, int64_t stride, int64_t count, int64_t width, opmath_t<T>* values) {
  if (stride == 1)
    for (int64_t j = 0; j < count; ++j) values[j] = to_opmath(logits[j]);
  else
    for (int64_t j = 0; j < count; ++j) values[j] = to_opmath(logits[j * stride]);
  for (int64_t j = count; j < width; ++j) values[j] = -kInfinity<opmath_t<T>>;
}

// The largest of a block. A NaN may be lost here; the sum of exponentials keeps it.
template <class S>
TORCH_IRE_INLINE S largest_of(const S* values, int64_t width) {
  S largest[kLabelBlock];
  for (int64_t j = 0; j < width; ++j) largest[j] = values[j];
  for (int64_t half = width / 2; half > 0; half /= 2)
    for (int64_t j = 0; j < half; ++j) largest[j] = largest[j] > largest[j + half] ? largest[j] : largest[j + half];
  return largest[0];
}

// e^(x - max) of a block. Among infinite logits all are equal and nothing else has any weight: the limit of equal
// logits that grow.
template <class S>
TORCH_IRE_INLINE void weights_of(const S* values, int64_t width, S max, S* weights) {
  if (max == kInfinity<S>) {
    for (int64_t j = 0; j < width; ++j) {
      const S finite = values[j] != values[j] ? values[j] : S{0};
      weights[j] = values[j] == max ? S{1} : finite;
    }
    return;
  }
  const S origin = max == -kInfinity<S> ? S{0} : max;
  for (int64_t j = 0; j < width; ++j) weights[j] = exp_nonpositive(values[j] - origin);
}

template <class S>
TORCH_IRE_INLINE double block_scale(S block_max, S max) {
  return block_max == max ? 1.0 : std::exp(static_cast<double>(block_max) - static_cast<double>(max));
}

// The first class whose cumulative weight exceeds `target`, or the last that has any weight where rounding leaves none.
template <class S>
TORCH_IRE_INLINE int64_t find_class(const S* weights, int64_t width, double target) {
  double cumulative = 0.0;
  int64_t last = 0;
  for (int64_t j = 0; j < width; ++j) {
    if (!(weights[j] > S{0})) continue;
    last = j;
    cumulative += static_cast<double>(weights[j]);
    if (cumulative > target) break;
  }
  return last;
}

template <class T>
TORCH_IRE_INLINE void draw(const T* logits, int64_t classes, int64_t stride, double uniform,
                           const opmath_t<T>* block_max, const double* block_sum, int64_t* label,
                           opmath_t<T>* logsumexp) {
  using S = opmath_t<T>;
  const int64_t blocks = num_label_blocks(classes);
  S max = -kInfinity<S>;
  for (int64_t b = 0; b < blocks; ++b) max = block_max[b] > max ? block_max[b] : max;
  double total = 0.0;
  for (int64_t b = 0; b < blocks; ++b) total += block_sum[b] * block_scale(block_max[b], max);
  *logsumexp = static_cast<S>(static_cast<double>(max) + std::log(total));
  if (!(total > 0.0)) {  // NaN, or nothing that could be drawn
    *label = -1;
    return;
  }
  const double target = uniform * total;
  double before = 0.0;
  int64_t chosen = 0;
  double rest = 0.0;
  for (int64_t b = 0; b < blocks; ++b) {
    const double scale = block_scale(block_max[b], max);
    const double weight = block_sum[b] * scale;
    if (!(weight > 0.0)) continue;
    chosen = b;
    rest = (target - before) / scale;
    before += weight;
    if (before > target) break;
  }
  S values[kLabelBlock];
  S weights[kLabelBlock];
  const int64_t first = chosen * kLabelBlock;
  const int64_t count = std::min(kLabelBlock, classes - first);
  const int64_t width = padded_width(count);
  load_block(logits + first * stride, stride, count, width, values);
  weights_of(values, width, block_max[chosen], weights);
  *label = first + find_class(weights, width, rest);
}

template <class T>
TORCH_IRE_INLINE void sample_tile(const LabelTile<T>& tile, int64_t classes, int64_t stride, opmath_t<T>* block_max,
                                  double* block_sum) {
  using S = opmath_t<T>;
  const int64_t blocks = num_label_blocks(classes);
  // a cache line of padding: rows a power of two apart would share one set of the cache
  S values[kLabelTile][kLabelBlock + 64 / sizeof(S)];
  S weights[kLabelBlock];
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kLabelBlock;
    const int64_t count = std::min(kLabelBlock, classes - first);
    const int64_t width = padded_width(count);
    if (tile.rows == 1) {
      load_block(tile.logits[0] + first * stride, stride, count, width, values[0]);
    } else {
      for (int64_t j = 0; j < count; ++j)
        for (int64_t r = 0; r < tile.rows; ++r) values[r][j] = to_opmath(tile.logits[r][(first + j) * stride]);
      for (int64_t r = 0; r < tile.rows; ++r)
        for (int64_t j = count; j < width; ++j) values[r][j] = -kInfinity<S>;
    }
    for (int64_t r = 0; r < tile.rows; ++r) {
      const S max = largest_of(values[r], width);
      weights_of(values[r], width, max, weights);
      block_max[r * blocks + b] = max;
      block_sum[r * blocks + b] = static_cast<double>(tree_sum(weights, width));
    }
  }
  for (int64_t r = 0; r < tile.rows; ++r)
    draw(tile.logits[r], classes, stride, tile.uniform[r], block_max + r * blocks, block_sum + r * blocks,
         tile.labels[r], tile.logsumexp[r]);
}

}  // namespace

#define TORCH_IRE_INSTANTIATE(T)                                                                             \
  template <>                                                                                                \
  TORCH_IRE_CLONES void sample_labels_tile_cpu<T>(const LabelTile<T>& tile, int64_t classes, int64_t stride, \
                                                  opmath_t<T>* block_max, double* block_sum) {               \
    sample_tile(tile, classes, stride, block_max, block_sum);                                                \
  }
TORCH_IRE_FOR_EACH_FLOATING(TORCH_IRE_INSTANTIATE)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
