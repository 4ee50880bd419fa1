#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/tensor_facts.h"

// The checks that every operator makes before its first write. The dispatcher picks a backend by any one tensor, so
// device, dtype, shape and layout of each tensor are checked here. A message names operator, argument and index, then
// what was expected and what came.
namespace torch_ire {

using torch::headeronly::ScalarType;
using TensorList = std::vector<Tensor>;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << "torch_ire::" << op << ": ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// A macro, so that a message is put together only when it is needed: a step checks thousands of tensors.
#define TORCH_IRE_CHECK(condition, op, ...)  \
  do {                                       \
    if (!(condition)) fail(op, __VA_ARGS__); \
  } while (false)

const char* name_of(ScalarType dtype);
std::string device_name(const Tensor& tensor);
std::string shape_of(const Tensor& tensor);

// The four dtypes of parameters.
bool is_floating(ScalarType dtype);

// float32 for the half types and float32, float64 for float64: moments, scores and norms.
ScalarType opmath_dtype(ScalarType dtype);

// The first list of an operator: strided, dense (no gaps, no overlaps), of one floating dtype, on one device.
void check_leading_list(const char* op, const char* name, const TensorList& list);

// A list that runs along the leading one: as long, same device, same shapes and strides, of the given dtype. May be
// empty if `optional`.
void check_list_like(const char* op, const char* name, const TensorList& list, const char* leading_name,
                     const TensorList& leading, ScalarType dtype, bool optional = false);

// Packed masks: uint8, one-dimensional, ceil(numel / 8) bytes per tensor of the leading list. May be empty if
// `optional`.
void check_masks(const char* op, const char* name, const TensorList& masks, const char* leading_name,
                 const TensorList& leading, bool optional = true);

// How the state of a step is held: in lists that run along the parameters or, packed, in one tensor per list with a
// segment per parameter (kernels/packed_layout.h).
struct StateLayout {
  bool packed;
  // elements of a packed tensor with items of 2, 4 and 8 bytes, and bytes of packed masks
  int64_t numel2 = 0, numel4 = 0, numel8 = 0, mask_bytes = 0;

  StateLayout(const TensorList& params, bool is_packed);
  int64_t numel(ScalarType dtype) const;
};

// State of the given dtype. May be empty if `optional`.
void check_state(const char* op, const char* name, const TensorList& state, const TensorList& params, ScalarType dtype,
                 const StateLayout& layout, bool optional = false);

// Masks of the state: check_masks or one packed tensor. May be empty.
void check_state_masks(const char* op, const char* name, const TensorList& masks, const TensorList& params,
                       const StateLayout& layout);

// Counters: float32 with one element each or, packed, one tensor with a number per parameter and no padding.
void check_state_steps(const char* op, const char* name, const TensorList& steps, const TensorList& params,
                       const StateLayout& layout, bool optional = false);

// A scalar in memory: one float32 or float64 element on the device of `like`.
void check_scalar(const char* op, const char* name, const Tensor& scalar, const Tensor& like);

// A score in memory (a threshold or a guess at one): one element of any of the four dtypes, on the device of `like`.
void check_score_scalar(const char* op, const char* name, const Tensor& scalar, const Tensor& like);

// The scalars that a step can take from memory.
void check_step_scalars(const char* op, const Tensor& like, const OptionalTensor& grad_scale,
                        const OptionalTensor& found_inf, const OptionalTensor& lr_tensor,
                        const OptionalTensor& kappa_tensor);

// The lists that choose the rounding, of which at most one may be given: compensations and master parameters for half
// types, one key per tensor for bfloat16.
void check_rounding(const char* op, const TensorList& compensations, const TensorList& master_params,
                    const std::vector<int64_t>& keys, const TensorList& params, const StateLayout& layout);

// Value of a one-element CPU tensor of one of the four dtypes.
double scalar_value(const Tensor& scalar);

inline double scalar_or(const OptionalTensor& scalar, double otherwise) {
  return scalar.has_value() ? scalar_value(*scalar) : otherwise;
}

}  // namespace torch_ire
