#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/block_reduce.cuh"
#include "kernels/multi_tensor.cuh"
#include "kernels/sample_labels.h"
#include "math/counter_rng.h"
#include "math/exp.h"

namespace torch_ire {
namespace {

// 8 warps: a row is read in 8 pieces, of which one is read again. Four blocks on an SM: while one finds its label, the
// others keep the memory busy.
constexpr int kLabelThreads = 256;
constexpr int kLabelBlocks = 4;

template <class S>
constexpr S kInfinity = std::numeric_limits<S>::infinity();

// e^x for x <= 0. In float the machine's instruction: its error of 2^-22 is far below what a draw can show, and so are
// weights below the smallest normal number.
__device__ inline float exp_of(float x) {
  return exp2_approximate(x * 1.44269504f);
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
    if (max == kInfinity<S>) {
      for (int k = 0; k < N; ++k) sum += weight_of(x[k], max);
      return;
    }
    const S base = max == -kInfinity<S> ? S(0) : max;
    TORCH_IRE_UNROLL(N)
    for (int k = 0; k < N; ++k) sum += exp_of(x[k] - base);
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
  constexpr int64_t kStep = kWarpThreads * kLanes;
  const bool aligned = stride == 1 && is_aligned<kLanes>(row + begin);
  int64_t c = begin + threadIdx.x % kWarpThreads * kLanes;
  const auto give = [&](const Lanes<T, kLanes>& lanes) {
    S x[kLanes];
    TORCH_IRE_UNROLL(kLanes)
    for (int k = 0; k < kLanes; ++k) x[k] = to_opmath(lanes.lane[k]);
    body(x);
  };
  // as read_chunk: several loads in flight, none under a condition of its own
  for (; aligned && c + (kVectorsInFlight - 1) * kStep + kLanes <= end; c += kVectorsInFlight * kStep) {
    Lanes<T, kLanes> vectors[kVectorsInFlight];
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) vectors[u] = load_lanes<kLanes>(row + c + u * kStep);
    TORCH_IRE_UNROLL(kVectorsInFlight)
    for (int u = 0; u < kVectorsInFlight; ++u) give(vectors[u]);
  }
  TORCH_IRE_UNROLL(1)
  for (; c < end; c += kStep) {
    if (aligned && c + kLanes <= end) {
      give(load_lanes<kLanes>(row + c));
    } else {
      S x[kLanes];
      TORCH_IRE_UNROLL(kLanes)
      for (int k = 0; k < kLanes; ++k) x[k] = c + k < end ? to_opmath(row[(c + k) * stride]) : -kInfinity<S>;
      body(x);
    }
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

// Sum over the lanes up to this one.
__device__ inline double sum_up_to_lane(double value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  TORCH_IRE_UNROLL(5)
  for (int offset = 1; offset < kWarpThreads; offset *= 2) {
    const double lower = __shfl_up_sync(kFullWarp, value, static_cast<unsigned>(offset));
    if (lane >= offset) value += lower;
  }
  return value;
}

__device__ inline int first_lane(unsigned lanes) {
  return __ffs(static_cast<int>(lanes)) - 1;
}
__device__ inline int last_lane(unsigned lanes) {
  return kWarpThreads - 1 - __clz(static_cast<int>(lanes));
}

// Masses of pieces, one a lane, in units that they share.
struct Masses {
  double own, up_to;  // of this lane, and of all lanes up to it

  __device__ explicit Masses(double mass) : own(mass), up_to(sum_up_to_lane(mass)) {}
  __device__ double total() const { return __shfl_sync(kFullWarp, up_to, kWarpThreads - 1); }
};

struct Choice {
  int piece;
  double rest;  // of the target, behind the pieces before
};

// The first piece at which the cumulative mass exceeds `target`, or the last one with any mass where rounding leaves
// none.
__device__ inline Choice choose(const Masses& masses, double target) {
  const bool drawable = masses.own > 0.0;
  const unsigned reached = __ballot_sync(kFullWarp, drawable && masses.up_to > target);
  const unsigned with_mass = __ballot_sync(kFullWarp, drawable);
  const int piece = reached != 0 ? first_lane(reached) : last_lane(with_mass);
  const double before = __shfl_sync(kFullWarp, masses.up_to, piece == 0 ? 0 : piece - 1);
  return {piece, piece == 0 ? target : target - before};
}

// The class of a piece at which the cumulative weight exceeds `target`, or the last one with any weight; by one warp,
// whose lanes take a few neighbours each.
template <class T>
__device__ inline int64_t find_class(const T* row, int64_t stride, const Piece& piece, opmath_t<T> max, double target) {
  constexpr int kNeighbours = 8;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  double before = 0.0;
  int64_t last = piece.begin;
  for (int64_t first = piece.begin; first < piece.end; first += kWarpThreads * kNeighbours) {
    const int64_t own = first + lane * kNeighbours;
    opmath_t<T> weights[kNeighbours];
    double sum = 0.0;
    TORCH_IRE_UNROLL(kNeighbours)
    for (int k = 0; k < kNeighbours; ++k) {
      weights[k] = own + k < piece.end ? weight_of(to_opmath(row[(own + k) * stride]), max) : 0;
      sum += static_cast<double>(weights[k]);
    }
    const double up_to = before + sum_up_to_lane(sum);
    double cumulative = up_to - sum;
    int chosen = -1;
    int with_weight = 0;
    TORCH_IRE_UNROLL(kNeighbours)
    for (int k = 0; k < kNeighbours; ++k) {
      cumulative += static_cast<double>(weights[k]);
      if (!(weights[k] > 0)) continue;
      with_weight = k;
      if (chosen < 0 && cumulative > target) chosen = k;
    }
    if (chosen < 0) chosen = with_weight;
    const unsigned reached = __ballot_sync(kFullWarp, sum > 0.0 && up_to > target);
    if (reached != 0) {
      const int from = first_lane(reached);
      return first + from * kNeighbours + __shfl_sync(kFullWarp, chosen, from);
    }
    const unsigned drawable = __ballot_sync(kFullWarp, sum > 0.0);
    if (drawable != 0) {
      const int from = last_lane(drawable);
      last = first + from * kNeighbours + __shfl_sync(kFullWarp, with_weight, from);
    }
    before = __shfl_sync(kFullWarp, up_to, kWarpThreads - 1);
  }
  return last;
}

// grid: one block a row, or striding over the rows; block: any number of whole warps.
template <class T>
__global__ void __launch_bounds__(kLabelThreads, kLabelBlocks)
    sample_labels_kernel(const T* logits, TORCH_IRE_GRID_CONSTANT(LabelRows) rows, uint64_t key, int64_t* labels,
                         opmath_t<T>* logsumexp) {
  using S = opmath_t<T>;
  TORCH_IRE_SHARED(Mass<S>[kMaxWarps], masses);
  TORCH_IRE_SHARED(double[kMaxWarps], sums_inside);
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int64_t stride = rows.class_stride;
  const Piece whole{0, rows.classes};
  for (int64_t r = blockIdx.x; r < rows.count; r += gridDim.x) {
    const T* const row = logits + rows.offset(r);
    const Piece mine = piece_of(whole, warp, warps);
    RunningMass<S> running;
    walk_row(row, stride, mine.begin, mine.end, [&](const auto& x) { running.add(x); });
    const Mass<S> mass = mass_of_warp(running);
    if (lane == 0) masses[warp] = mass;
    __syncthreads();

    // Every warp repeats this, a piece a lane: cheaper than a broadcast.
    const Mass<S> of_piece = lane < warps ? masses[lane] : Mass<S>{-kInfinity<S>, 0.0};
    const S max = warp_reduce(of_piece.max, [](S a, S b) { return a > b ? a : b; });
    const double relative = of_piece.relative_to(max);
    const Masses of_pieces(relative);
    const double total = of_pieces.total();
    if (threadIdx.x == 0) logsumexp[r] = static_cast<S>(static_cast<double>(max) + std::log(total));
    if (!(total > 0.0)) {  // NaN, or nothing that could be drawn
      if (threadIdx.x == 0) labels[r] = -1;
      __syncthreads();
      continue;
    }
    const double uniform = uniform_open(mix64(key, static_cast<uint64_t>(r)));
    const Choice choice = choose(of_pieces, uniform * total);
    const Piece chosen = piece_of(whole, choice.piece, warps);
    const S max_inside = __shfl_sync(kFullWarp, of_piece.max, choice.piece);
    // in units of the piece's own weights
    const double rest = choice.rest * (masses[choice.piece].sum / __shfl_sync(kFullWarp, relative, choice.piece));

    const Piece part = piece_of(chosen, warp, warps);
    S sum = S(0);
    walk_row(row, stride, part.begin, part.end, [&](const auto& x) {
      for (const S v : x) sum += weight_of(v, max_inside);
    });
    const double sum_inside = warp_reduce(static_cast<double>(sum), [](double a, double b) { return a + b; });
    if (lane == 0) sums_inside[warp] = sum_inside;
    __syncthreads();
    if (warp == 0) {
      const Choice inside = choose(Masses(lane < warps ? sums_inside[lane] : 0.0), rest);
      const int64_t label = find_class(row, stride, piece_of(chosen, inside.piece, warps), max_inside, inside.rest);
      if (threadIdx.x == 0) labels[r] = label;
    }
    // The next row's masses are written by no warp before this one's have been read: sums_inside stands between.
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
