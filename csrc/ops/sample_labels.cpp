#include "kernels/sample_labels.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "math/counter_rng.h"
#include "ops/checks.h"
#include "ops/cuda_stream.h"
#include "ops/dispatch.h"
#include "ops/library.h"
#include "ops/parallel.h"

namespace torch_ire {
namespace {

// Rows may lie in memory in any way: logits are only read.
void check_sample_labels(const Tensor& logits) {
  constexpr const char* op = "sample_labels";
  TORCH_IRE_CHECK(logits.layout() == torch::headeronly::Layout::Strided, op,
                  "logits: expected a strided tensor, got a sparse or otherwise special layout");
  TORCH_IRE_CHECK(is_floating(logits.scalar_type()), op, "logits: expected float32, float64, bfloat16 or float16, got ",
                  name_of(logits.scalar_type()));
  TORCH_IRE_CHECK(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1, op,
                  "logits: expected at least one class in the last dimension, got shape ", shape_of(logits));
}

// Element offsets of the rows of a strided tensor, whose last dimension holds the classes.
struct Rows {
  std::vector<int64_t> sizes, strides;
  int64_t count = 1;

  explicit Rows(const Tensor& logits) {
    for (int64_t d = 0; d + 1 < logits.dim(); ++d) {
      sizes.push_back(logits.size(d));
      strides.push_back(logits.stride(d));
      count *= logits.size(d);
    }
  }

  int64_t offset(int64_t row) const {
    int64_t at = 0;
    for (size_t d = sizes.size(); d-- > 0; row /= sizes[d]) at += row % sizes[d] * strides[d];
    return at;
  }
};

std::tuple<Tensor, Tensor> sample_labels_cpu(const Tensor& logits, int64_t seed, int64_t offset) {
  check_sample_labels(logits);
  const Rows rows(logits);
  const int64_t classes = logits.size(logits.dim() - 1);
  const int64_t stride = logits.stride(logits.dim() - 1);
  Tensor labels = torch::stable::new_empty(logits, rows.sizes, ScalarType::Long);
  Tensor logsumexp = torch::stable::new_empty(logits, rows.sizes, opmath_dtype(logits.scalar_type()));
  const uint64_t key = mix64(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
  const int64_t tile_rows = stride == 1 ? 1 : kLabelTile;
  const int64_t tiles = (rows.count + tile_rows - 1) / tile_rows;
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    torch::stable::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
      const size_t blocks = static_cast<size_t>(tile_rows * num_label_blocks(classes));
      std::vector<opmath_t<T>> block_max(blocks);
      std::vector<double> block_sum(blocks);
      for (int64_t t = begin; t < end; ++t) {
        LabelTile<T> tile;
        tile.rows = std::min(tile_rows, rows.count - t * tile_rows);
        for (int64_t r = 0; r < tile.rows; ++r) {
          const int64_t row = t * tile_rows + r;
          tile.logits[r] = data_of<T>(logits) + rows.offset(row);
          tile.uniform[r] = uniform_open(mix64(key, static_cast<uint64_t>(row)));
          tile.labels[r] = data_of<int64_t>(labels) + row;
          tile.logsumexp[r] = data_of<opmath_t<T>>(logsumexp) + row;
        }
        sample_labels_tile_cpu(tile, classes, stride, block_max.data(), block_sum.data());
      }
    });
  });
  return {labels, logsumexp};
}

#ifdef TORCH_IRE_WITH_CUDA

std::tuple<Tensor, Tensor> sample_labels_cuda(const Tensor& logits, int64_t seed, int64_t offset) {
  check_sample_labels(logits);
  const CudaContext context(logits);
  LabelRows rows{};
  rows.dims = static_cast<int32_t>(logits.dim() - 1);
  rows.count = 1;
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < rows.dims; ++d) {
    sizes.push_back(logits.size(d));
    rows.sizes[d] = logits.size(d);
    rows.strides[d] = logits.stride(d);
    rows.count *= logits.size(d);
  }
  rows.classes = logits.size(rows.dims);
  rows.class_stride = logits.stride(rows.dims);
  const Tensor labels = torch::stable::new_empty(logits, sizes, ScalarType::Long);
  const Tensor logsumexp = torch::stable::new_empty(logits, sizes, opmath_dtype(logits.scalar_type()));
  const uint64_t key = mix64(static_cast<uint64_t>(seed), static_cast<uint64_t>(offset));
  dispatch_floating(logits.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    check_cuda("sample_labels", launch_sample_labels(data_of<T>(logits), rows, key, data_of<int64_t>(labels),
                                                     data_of<opmath_t<T>>(logsumexp), context.stream()));
  });
  return {labels, logsumexp};
}

#endif

}  // namespace

// One label a row from softmax(logits), and the row's logsumexp from the same read.
TORCH_IRE_OPERATOR("sample_labels", "(Tensor logits, *, int seed, int offset) -> (Tensor labels, Tensor logsumexp)",
                   sample_labels_cpu, sample_labels_cuda)

}  // namespace torch_ire
