#pragma once

#include <vector>

#include "kernels/block_reduce.cuh"
#include "kernels/multi_tensor.cuh"

// The two passes over a tall basis Q of m rows that projecting and orthogonalising consist of: overlaps Q x, and
// x - Q^T c. An operator says what x is and where the result goes with a Values type:
//
//   using element = ...;                                      // what it loads and stores
//   template <int N> bool aligned() const;
//   template <int N, class S> void load(int64_t i, S (&x)[N]) const;
//   template <int N, class S> void store(int64_t i, const S (&residual)[N]) const;
namespace torch_ire {

// One tensor of the list: element (r, i) of its part of the basis is at basis[r * stride + i].
template <class Values, class B>
struct BasisPassSpan {
  Values values;
  const B* basis;
  int64_t stride;
  int64_t numel;
};

// Workspace of an operator on m rows, in device memory.
struct BasisWorkspace {
  double* partials;  // [m][stride], one number a block
  int64_t stride;
  double* overlaps;      // [m]
  double* coefficients;  // [m], in the arithmetic's precision

  static int64_t partials_of_row(size_t num_launches) { return kReduceBlocks * static_cast<int64_t>(num_launches); }
};

// Rows of a block of the first pass: x is read once for so many rows of Q.
constexpr int kBasisRows = 8;

template <class Values, class B>
constexpr bool kIsBasisLaunchSmall = sizeof(SpanPack<BasisPassSpan<Values, B>>) + kScalarBytes <= kMaxParameterBytes;

// grid: (kReduceBlocks or fewer, striding over the chunks; ceil(m / kBasisRows)). Sums within a chunk are in the
// arithmetic's precision, sums of chunks in double.
template <class S, class Values, class B>
__global__ void __launch_bounds__(kStreamThreads)
    basis_overlaps_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<BasisPassSpan<Values, B>>) pack, uint32_t chunks,
                          int64_t rows, int64_t first_partial, TORCH_IRE_GRID_CONSTANT(BasisWorkspace) workspace) {
  constexpr int kLanes = kLanesOf<S>;
  const int64_t first_row = static_cast<int64_t>(blockIdx.y) * kBasisRows;
  double total[kBasisRows] = {};
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    const BasisPassSpan<Values, B>& s = pack.spans[chunk.span];
    const B* row[kBasisRows];  // past the last row the last one again, whose sum nobody takes
    TORCH_IRE_UNROLL(kBasisRows)
    for (int r = 0; r < kBasisRows; ++r)
      row[r] = s.basis + (first_row + r < rows ? first_row + r : rows - 1) * s.stride;
    bool aligned = s.values.template aligned<kLanes>();
    for (int r = 0; r < kBasisRows; ++r) aligned = aligned && is_aligned<kLanes>(row[r]);
    S sum[kBasisRows] = {};
    walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
      constexpr int N = decltype(n)::value;
      S x[N];
      s.values.template load<N>(i, x);
      TORCH_IRE_UNROLL(kBasisRows)
      for (int r = 0; r < kBasisRows; ++r) {
        const Lanes<B, N> q = load_lanes<N>(row[r] + i);
        TORCH_IRE_UNROLL(N)
        for (int k = 0; k < N; ++k) sum[r] += to_opmath(q.lane[k]) * x[k];
      }
    });
    TORCH_IRE_UNROLL(kBasisRows)
    for (int r = 0; r < kBasisRows; ++r) total[r] += static_cast<double>(sum[r]);
  }
  TORCH_IRE_UNROLL(kBasisRows)
  for (int r = 0; r < kBasisRows; ++r) {
    const double sum = block_sum(total[r]);
    if (threadIdx.x == 0 && first_row + r < rows)
      workspace.partials[(first_row + r) * workspace.stride + first_partial + blockIdx.x] = sum;
  }
}

// grid: one block, a warp a row. Coefficients are the overlaps, multiplied by the inverse Gram matrix where there is
// one, and rounded to S; `added` receives the overlaps on top of what it has.
template <class S>
__global__ void __launch_bounds__(kStreamThreads)
    basis_coefficients_kernel(int64_t rows, int64_t partials, const S* gram_inverse, double* added,
                              TORCH_IRE_GRID_CONSTANT(BasisWorkspace) workspace) {
  const int64_t lane = threadIdx.x % kWarpThreads;
  for (int64_t r = threadIdx.x / kWarpThreads; r < rows; r += blockDim.x / kWarpThreads) {
    double sum = 0.0;
    for (int64_t b = lane; b < partials; b += kWarpThreads) sum += workspace.partials[r * workspace.stride + b];
    sum = warp_reduce(sum, [](double x, double y) { return x + y; });
    if (lane == 0) workspace.overlaps[r] = sum;
  }
  __syncthreads();
  for (int64_t r = threadIdx.x; r < rows; r += blockDim.x) {
    double sum = workspace.overlaps[r];
    if (gram_inverse != nullptr) {
      sum = 0.0;
      for (int64_t c = 0; c < rows; ++c) sum += static_cast<double>(gram_inverse[r * rows + c]) * workspace.overlaps[c];
    }
    workspace.coefficients[r] = static_cast<double>(static_cast<S>(sum));
    if (added != nullptr) added[r] += workspace.overlaps[r];
  }
}

// grid: kReduceBlocks or fewer, striding over the chunks. `squares`: one number a block, the sum of the residual's
// squares; null: nobody asks.
template <class S, class Values, class B>
__global__ void __launch_bounds__(kStreamThreads)
    basis_subtract_kernel(TORCH_IRE_GRID_CONSTANT(SpanPack<BasisPassSpan<Values, B>>) pack, uint32_t chunks,
                          int64_t rows, const double* coefficients, double* squares) {
  constexpr int kLanes = kLanesOf<S>;
  double total = 0.0;
  for (uint32_t block = blockIdx.x; block < chunks; block += gridDim.x) {
    const Chunk chunk = chunk_of_block(pack, block);
    const BasisPassSpan<Values, B>& s = pack.spans[chunk.span];
    const bool aligned =
        s.values.template aligned<kLanes>() && is_aligned<kLanes>(s.basis) && (rows <= 1 || s.stride % kLanes == 0);
    walk_chunk<kLanes>(chunk, aligned, [&](auto n, int64_t i) {
      constexpr int N = decltype(n)::value;
      S x[N];
      s.values.template load<N>(i, x);
      TORCH_IRE_UNROLL(4)
      for (int64_t r = 0; r < rows; ++r) {
        const Lanes<B, N> q = load_lanes<N>(s.basis + r * s.stride + i);
        const S coefficient = static_cast<S>(coefficients[r]);
        TORCH_IRE_UNROLL(N)
        for (int k = 0; k < N; ++k) x[k] -= coefficient * to_opmath(q.lane[k]);
      }
      s.values.template store<N>(i, x);
      TORCH_IRE_UNROLL(N)
      for (int k = 0; k < N; ++k) total += static_cast<double>(x[k]) * static_cast<double>(x[k]);
    });
  }
  if (squares == nullptr) return;
  total = block_sum(total);
  if (threadIdx.x == 0) squares[blockIdx.x] = total;
}

inline unsigned reduce_blocks(unsigned chunks) {
  return chunks < kReduceBlocks ? chunks : static_cast<unsigned>(kReduceBlocks);
}

// Q x into the workspace's coefficients.
template <class S, class Values, class B>
cudaError_t launch_basis_overlaps(const std::vector<BasisPassSpan<Values, B>>& spans, int64_t rows,
                                  const S* gram_inverse, double* added, const BasisWorkspace& workspace,
                                  cudaStream_t stream) {
  static_assert(kIsBasisLaunchSmall<Values, B>, "kernel parameters");
  if (rows == 0) return cudaSuccess;
  int64_t partials = 0;
  const cudaError_t error =
      for_each_launch(spans, [&](const SpanPack<BasisPassSpan<Values, B>>& pack, unsigned chunks) {
        const dim3 grid(reduce_blocks(chunks), static_cast<unsigned>((rows + kBasisRows - 1) / kBasisRows));
        TORCH_IRE_LAUNCH((basis_overlaps_kernel<S, Values, B>), grid, kStreamThreads, 0, stream, pack, chunks, rows,
                         partials, workspace);
        partials += grid.x;
      });
  if (error != cudaSuccess) return error;
  TORCH_IRE_LAUNCH(basis_coefficients_kernel<S>, 1u, kStreamThreads, 0, stream, rows, partials, gram_inverse, added,
                   workspace);
  return cudaGetLastError();
}

// x - Q^T coefficients into where the Values store it; `squares`, if not null, for a list of one launch.
template <class S, class Values, class B>
cudaError_t launch_basis_subtract(const std::vector<BasisPassSpan<Values, B>>& spans, int64_t rows,
                                  const double* coefficients, double* squares, cudaStream_t stream) {
  return for_each_launch(spans, [&](const SpanPack<BasisPassSpan<Values, B>>& pack, unsigned chunks) {
    TORCH_IRE_LAUNCH((basis_subtract_kernel<S, Values, B>), reduce_blocks(chunks), kStreamThreads, 0, stream, pack,
                     chunks, rows, coefficients, squares);
  });
}

}  // namespace torch_ire
