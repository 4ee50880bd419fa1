#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

namespace torch_ire {

using torch::stable::Tensor;

// Sizes and strides of a strided tensor, which own nothing: the tensor must outlive them.
struct Geometry {
  int64_t dim = 0;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;

  Geometry() = default;
  explicit Geometry(const Tensor& tensor) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor.get(), &dim));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  }

  int64_t numel() const { return std::accumulate(sizes, sizes + dim, int64_t{1}, std::multiplies<int64_t>()); }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int64_t d = dim; d-- > 0; expected *= sizes[d])
      if (sizes[d] != 1 && strides[d] != expected) return numel() == 0;
    return true;
  }

  // Every address between the first and the last element belongs to exactly one element.
  bool is_dense() const {
    if (is_contiguous()) return true;
    std::vector<int64_t> order(static_cast<size_t>(dim));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] < strides[b]; });
    int64_t expected = 1;
    for (const int64_t d : order) {
      if (sizes[d] == 1) continue;
      if (strides[d] != expected) return false;
      expected *= sizes[d];
    }
    return true;
  }

  // Same shape, and element i in memory is the same element.
  bool same_layout(const Geometry& other) const {
    if (dim != other.dim || !std::equal(sizes, sizes + dim, other.sizes)) return false;
    if (std::equal(strides, strides + dim, other.strides) || numel() == 0) return true;
    for (int64_t d = 0; d < dim; ++d)
      if (sizes[d] != 1 && strides[d] != other.strides[d]) return false;
    return true;
  }
};

// What the checks compare from tensor to tensor. The codes are torch's own and good for comparisons alone; asking
// torch::stable::Tensor instead translates each of them through a dozen calls, and a step checks thousands of tensors.
struct TensorKind {
  int32_t dtype, device_type, device_index, layout;

  explicit TensorKind(const Tensor& tensor) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &device_type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device_index));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(tensor.get(), &layout));
  }

  bool is_strided() const { return layout == aoti_torch_layout_strided(); }

  bool same_device(const TensorKind& other) const {
    return device_type == other.device_type && device_index == other.device_index;
  }
};

}  // namespace torch_ire
