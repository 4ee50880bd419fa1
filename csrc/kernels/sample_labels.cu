#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/block_reduce.cuh"
#include "kernels/multi_tensor.cuh"
#include "kernels/sample_labels_cuda.h"
#include "math/counter_rng.h"
#include "math/exp.h"

namespace torch_ire {
namespace {

// 16 warps: a row is read in 16 pieces, of which one is read again.
constexpr int kLabelThreads = 512;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

// e^x for x <= 0. In float the machine's instruction: its error of 2^-22 is far below what a draw can show.
__device__ inline float exp_of(float x) {
  return __expf(x);
}
__device__ inline double exp_of(double x) {
  return exp_nonpositive(x);
}

// e^(x - max). Among infinite logits all are equal and nothing else has any weight: the limit of equal logits that
// grow.
template <class S>
__device__ inline S weight_of(S x, S max) {
  if (max == kInfinity<S>) return x == max ? S(1) : (x != x ? x : S(0));
  return exp_of(x - (max == -kInfinity<S> ? S(0) : max));
}

// Weights of logits relative to the largest so far.
template <class S>
struct Mass {
  S max;
  double sum;

  __device__ double relative_to(S larger) const {
    if (max == larger || sum != sum) return sum;
    return sum * std::exp(static_cast<double>(max) - static_cast<double>(larger));
  }
};

// A lane's share of a piece of a row.
template <class S>
struct RunningMass {
  S max = -kInfinity<S>;
  S sum = S(0);

  template <int N>
  __device__ void add(const S (&x)[N]) {
    S largest = max;
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) largest = x[k] > largest ? x[k] : largest;
    if (largest > max) {
      sum = sum != sum ? sum : sum * weight_of(max, largest);
      max = largest;
    }
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) sum += weight_of(x[k], max);
  }
};

template <class S>
__device__ inline Mass<S> mass_of_warp(const RunningMass<S>& lane) {
  const S max = warp_reduce(lane.max, [](S a, S b) { return a > b ? a : b; });
  const double sum = Mass<S>{lane.max, static_cast<double>(lane.sum)}.relative_to(max);
  return {max, warp_reduce(sum, [](double a, double b) { return a + b; })};
}

// Calls body(values) for classes [begin, end) of a row, spread over a warp: which lane takes which class does not
// depend on where the row lies in memory, only the width of the accesses does. What is past the end has no weight.
template <class T, class Body>
__device__ inline void walk_row(const T* row, int64_t stride, int64_t begin, int64_t end, Body body) {
  using S = opmath_t<T>;
  constexpr int kLanes = kLanesOf<T>;
  const bool aligned = stride == 1 && is_aligned<kLanes>(row + begin);
  TORCH_IRE_UNROLL(4)
  for (int64_t c = begin + threadIdx.x % kWarpThreads * kLanes; c < end; c += kWarpThreads * kLanes) {
    S x[kLanes];
    if (aligned && c + kLanes <= end) {
      const Lanes<T, kLanes> lanes = load_lanes<kLanes>(row + c);
      TORCH_IRE_UNROLL(kLanes)
      for (int k = 0; k < kLanes; ++k) x[k] = to_opmath(lanes.lane[k]);
    } else {
      TORCH_IRE_UNROLL(kLanes)
      for (int k = 0; k < kLanes; ++k) x[k] = c + k < end ? to_opmath(row[(c + k) * stride]) : -kInfinity<S>;
    }
    body(x);
  }
}

// Piece i of n of classes [begin, end): whole vectors for every lane but in the last pieces, some of which may be
// empty.
struct Piece {
  int64_t begin, end;
};
__device__ inline Piece piece_of(const Piece& whole, int i, int n) {
  constexpr int64_t kUnit = 256;
  const int64_t length = ((whole.end - whole.begin + n - 1) / n + kUnit - 1) / kUnit * kUnit;
  const int64_t begin = whole.begin + i * length;
  const int64_t end = begin + length;
  return {begin < whole.end ? begin : whole.end, end < whole.end ? end : whole.end};
}

struct Choice {
  int piece;
  double rest;  // of the target, behind the pieces before, in units of the piece's own weights
};

// The first piece at which the cumulative mass exceeds `target`, or the last one with any mass where rounding leaves
// none.
template <class S>
__device__ inline Choice choose(const Mass<S>* masses, int count, S max, double target) {
  Choice choice{0, 0.0};
  double before = 0.0;
  for (int i = 0; i < count; ++i) {
    const double mass = masses[i].relative_to(max);
    if (!(mass > 0.0)) continue;
    choice = {i, (target - before) * (masses[i].sum / mass)};
    before += mass;
    if (before > target) break;
  }
  return choice;
}

// The class of a piece at which the cumulative weight exceeds `target`, or the last one with any weight; by one warp.
template <class T>
__device__ inline int64_t find_class(const T* row, int64_t stride, const Piece& piece, opmath_t<T> max, double target) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  double before = 0.0;
  int64_t last = piece.begin;
  for (int64_t first = piece.begin; first < piece.end; first += kWarpThreads) {
    const int64_t c = first + lane;
    const double weight = c < piece.end ? static_cast<double>(weight_of(to_opmath(row[c * stride]), max)) : 0.0;
    double up_to = weight;
    for (int offset = 1; offset < kWarpThreads; offset *= 2) {
      const double lower = __shfl_up_sync(kFullWarp, up_to, static_cast<unsigned>(offset));
      if (lane >= offset) up_to += lower;
    }
    const bool drawable = weight > 0.0;
    const unsigned reached = __ballot_sync(kFullWarp, drawable && before + up_to > target);
    if (reached != 0) return first + __ffs(static_cast<int>(reached)) - 1;
    const unsigned with_weight = __ballot_sync(kFullWarp, drawable);
    if (with_weight != 0) last = first + kWarpThreads - 1 - __clz(static_cast<int>(with_weight));
    before += __shfl_sync(kFullWarp, up_to, kWarpThreads - 1);
  }
  return last;
}

// grid: one block a row, or striding over the rows; block: any number of whole warps.
template <class T>
__global__ void __launch_bounds__(kLabelThreads)
    sample_labels_kernel(const T* logits, TORCH_IRE_GRID_CONSTANT(LabelRows) rows, uint64_t key, int64_t* labels,
                         opmath_t<T>* logsumexp) {
  using S = opmath_t<T>;
  TORCH_IRE_SHARED(Mass<S>[kMaxWarps], masses);
  TORCH_IRE_SHARED(Mass<S>[kMaxWarps], masses_inside);
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  const int64_t stride = rows.class_stride;
  const Piece whole{0, rows.classes};
  for (int64_t r = blockIdx.x; r < rows.count; r += gridDim.x) {
    const T* const row = logits + rows.offset(r);
    const Piece mine = piece_of(whole, warp, warps);
    RunningMass<S> running;
    walk_row(row, stride, mine.begin, mine.end, [&](const auto& x) { running.add(x); });
    const Mass<S> mass = mass_of_warp(running);
    if (threadIdx.x % kWarpThreads == 0) masses[warp] = mass;
    __syncthreads();

    // Every thread repeats these few sums: cheaper than a broadcast.
    S max = -kInfinity<S>;
    for (int w = 0; w < warps; ++w) max = masses[w].max > max ? masses[w].max : max;
    double total = 0.0;
    for (int w = 0; w < warps; ++w) total += masses[w].relative_to(max);
    if (threadIdx.x == 0) logsumexp[r] = static_cast<S>(static_cast<double>(max) + std::log(total));
    if (!(total > 0.0)) {  // NaN, or nothing that could be drawn
      if (threadIdx.x == 0) labels[r] = -1;
      __syncthreads();
      continue;
    }
    const double uniform = uniform_open(mix64(key, static_cast<uint64_t>(r)));
    const Choice choice = choose(masses, warps, max, uniform * total);
    const Piece chosen = piece_of(whole, choice.piece, warps);
    const S max_inside = masses[choice.piece].max;

    const Piece part = piece_of(chosen, warp, warps);
    S sum = S(0);
    walk_row(row, stride, part.begin, part.end, [&](const auto& x) {
      for (const S v : x) sum += weight_of(v, max_inside);
    });
    const double sum_inside = warp_reduce(static_cast<double>(sum), [](double a, double b) { return a + b; });
    if (threadIdx.x % kWarpThreads == 0) masses_inside[warp] = {max_inside, sum_inside};
    __syncthreads();
    if (warp == 0) {
      const Choice inside = choose(masses_inside, warps, max_inside, choice.rest);
      const int64_t label = find_class(row, stride, piece_of(chosen, inside.piece, warps), max_inside, inside.rest);
      if (threadIdx.x == 0) labels[r] = label;
    }
    // The next row's masses are written by no warp before this one's have been read: masses_inside stands between.
  }
}

}  // namespace

template <class T>
cudaError_t launch_sample_labels(const T* logits, const LabelRows& rows, uint64_t key, int64_t* labels,
                                 opmath_t<T>* logsumexp, cudaStream_t stream) {
  if (rows.count == 0) return cudaSuccess;
  const unsigned blocks = static_cast<unsigned>(std::min(rows.count, kMaxGrid));
  TORCH_IRE_LAUNCH(sample_labels_kernel<T>, blocks, kLabelThreads, 0, stream, logits, rows, key, labels, logsumexp);
  return cudaGetLastError();
}

#define TORCH_IRE_INSTANTIATE(T)                                                                             \
  template cudaError_t launch_sample_labels<T>(const T*, const LabelRows&, uint64_t, int64_t*, opmath_t<T>*, \
                                               cudaStream_t);
TORCH_IRE_INSTANTIATE(float)
TORCH_IRE_INSTANTIATE(double)
TORCH_IRE_INSTANTIATE(bfloat16)
TORCH_IRE_INSTANTIATE(float16)
#undef TORCH_IRE_INSTANTIATE

}  // namespace torch_ire
