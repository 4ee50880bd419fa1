#include "ops/checks.h"

#include <algorithm>
#include <numeric>

#include "kernels/packed_layout.h"
#include "math/number.h"
#include "ops/dispatch.h"

namespace torch_ire {
namespace {

struct Geometry {
  int64_t dim;
  const int64_t* sizes;
  const int64_t* strides;
};

Geometry geometry_of(const Tensor& tensor) {
  Geometry g{tensor.dim(), nullptr, nullptr};
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor.get(), &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor.get(), &strides));
  g.sizes = sizes;
  g.strides = strides;
  return g;
}

// Every address between the first and the last element belongs to exactly one element.
bool is_dense(const Tensor& tensor) {
  if (tensor.is_contiguous() || tensor.numel() == 0) return true;
  const Geometry g = geometry_of(tensor);
  std::vector<int64_t> order(static_cast<size_t>(g.dim));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return g.strides[a] < g.strides[b]; });
  int64_t expected = 1;
  for (const int64_t d : order) {
    if (g.sizes[d] == 1) continue;
    if (g.strides[d] != expected) return false;
    expected *= g.sizes[d];
  }
  return true;
}

bool same_layout(const Tensor& a, const Tensor& b) {
  const Geometry ga = geometry_of(a);
  const Geometry gb = geometry_of(b);
  if (ga.dim != gb.dim || !std::equal(ga.sizes, ga.sizes + ga.dim, gb.sizes)) return false;
  if (a.numel() == 0) return true;
  for (int64_t d = 0; d < ga.dim; ++d)
    if (ga.sizes[d] != 1 && ga.strides[d] != gb.strides[d]) return false;
  return true;
}

std::string strides_of(const Tensor& tensor) {
  const Geometry g = geometry_of(tensor);
  std::ostringstream out;
  out << "(";
  for (int64_t d = 0; d < g.dim; ++d) out << (d ? ", " : "") << g.strides[d];
  out << ")";
  return out.str();
}

void check_length(const char* op, const char* name, const TensorList& list, const char* leading_name,
                  const TensorList& leading) {
  TORCH_IRE_CHECK(list.size() == leading.size(), op, name, ": expected one tensor for each of the ", leading.size(),
                  " ", leading_name, ", got ", list.size());
}

void check_strided(const char* op, const char* name, size_t i, const Tensor& tensor) {
  TORCH_IRE_CHECK(tensor.layout() == torch::headeronly::Layout::Strided, op, name, "[", i,
                  "]: expected a strided tensor, got a sparse or otherwise special layout");
}

void check_device(const char* op, const char* name, size_t i, const Tensor& tensor, const Tensor& like) {
  TORCH_IRE_CHECK(tensor.device() == like.device(), op, name, "[", i, "]: expected device ", device_name(like),
                  ", got ", device_name(tensor));
}

// A list of state that is packed: one tensor of `numel` elements.
void check_packed(const char* op, const char* name, const TensorList& list, ScalarType dtype, int64_t numel,
                  const TensorList& params) {
  TORCH_IRE_CHECK(list.size() == 1, op, name, ": expected one packed tensor for the ", params.size(), " params, got ",
                  list.size());
  check_strided(op, name, 0, list[0]);
  TORCH_IRE_CHECK(list[0].scalar_type() == dtype, op, name, "[0]: expected ", name_of(dtype), ", got ",
                  name_of(list[0].scalar_type()));
  check_device(op, name, 0, list[0], params[0]);
  TORCH_IRE_CHECK(list[0].dim() == 1 && list[0].numel() == numel && list[0].is_contiguous(), op, name, "[0]: expected ",
                  numel, " contiguous elements for the ", params.size(), " params, got shape ", shape_of(list[0]),
                  " with strides ", strides_of(list[0]));
}

int64_t itemsize_of(ScalarType dtype) {
  if (dtype == ScalarType::Double) return 8;
  return dtype == ScalarType::Float ? 4 : 2;
}

}  // namespace

const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::ComplexHalf: return "complex32";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return "another dtype";
  }
}

std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  return (tensor.is_cuda() ? "cuda:" : "device ") + std::to_string(static_cast<int>(tensor.get_device()));
}

std::string shape_of(const Tensor& tensor) {
  const Geometry g = geometry_of(tensor);
  std::ostringstream out;
  out << "(";
  for (int64_t d = 0; d < g.dim; ++d) out << (d ? ", " : "") << g.sizes[d];
  out << ")";
  return out.str();
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

ScalarType opmath_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_leading_list(const char* op, const char* name, const TensorList& list) {
  TORCH_IRE_CHECK(!list.empty(), op, name, ": expected at least one tensor, got an empty list");
  const ScalarType dtype = list[0].scalar_type();
  TORCH_IRE_CHECK(is_floating(dtype), op, name, "[0]: expected float32, float64, bfloat16 or float16, got ",
                  name_of(dtype));
  for (size_t i = 0; i < list.size(); ++i) {
    check_strided(op, name, i, list[i]);
    TORCH_IRE_CHECK(list[i].scalar_type() == dtype, op, name, "[", i, "]: expected ", name_of(dtype), " as ", name,
                    "[0], got ", name_of(list[i].scalar_type()));
    check_device(op, name, i, list[i], list[0]);
    TORCH_IRE_CHECK(is_dense(list[i]), op, name, "[", i,
                    "]: expected a dense tensor (no gaps, no overlaps), got shape ", shape_of(list[i]),
                    " with strides ", strides_of(list[i]));
  }
}

void check_list_like(const char* op, const char* name, const TensorList& list, const char* leading_name,
                     const TensorList& leading, ScalarType dtype, bool optional) {
  if (optional && list.empty()) return;
  check_length(op, name, list, leading_name, leading);
  for (size_t i = 0; i < list.size(); ++i) {
    check_strided(op, name, i, list[i]);
    TORCH_IRE_CHECK(list[i].scalar_type() == dtype, op, name, "[", i, "]: expected ", name_of(dtype), ", got ",
                    name_of(list[i].scalar_type()));
    check_device(op, name, i, list[i], leading[0]);
    TORCH_IRE_CHECK(same_layout(list[i], leading[i]), op, name, "[", i, "]: expected shape ", shape_of(leading[i]),
                    " and strides ", strides_of(leading[i]), " as ", leading_name, "[", i, "], got ", shape_of(list[i]),
                    " and ", strides_of(list[i]));
  }
}

void check_masks(const char* op, const char* name, const TensorList& masks, const char* leading_name,
                 const TensorList& leading, bool optional) {
  if (optional && masks.empty()) return;
  check_length(op, name, masks, leading_name, leading);
  for (size_t i = 0; i < masks.size(); ++i) {
    check_strided(op, name, i, masks[i]);
    TORCH_IRE_CHECK(masks[i].scalar_type() == ScalarType::Byte, op, name, "[", i,
                    "]: expected uint8 (packed bits), got ", name_of(masks[i].scalar_type()));
    check_device(op, name, i, masks[i], leading[0]);
    const int64_t bytes = (leading[i].numel() + 7) / 8;
    TORCH_IRE_CHECK(masks[i].dim() == 1 && masks[i].numel() == bytes && masks[i].is_contiguous(), op, name, "[", i,
                    "]: expected ", bytes, " contiguous bytes for the ", leading[i].numel(), " coordinates of ",
                    leading_name, "[", i, "], got shape ", shape_of(masks[i]));
  }
}

void check_steps(const char* op, const char* name, const TensorList& steps, const char* leading_name,
                 const TensorList& leading, bool optional) {
  if (optional && steps.empty()) return;
  check_length(op, name, steps, leading_name, leading);
  for (size_t i = 0; i < steps.size(); ++i) {
    TORCH_IRE_CHECK(steps[i].scalar_type() == ScalarType::Float && steps[i].numel() == 1, op, name, "[", i,
                    "]: expected one float32 number, got ", name_of(steps[i].scalar_type()), " of shape ",
                    shape_of(steps[i]));
    check_device(op, name, i, steps[i], leading[0]);
  }
}

void check_state(const char* op, const char* name, const TensorList& state, const TensorList& params, ScalarType dtype,
                 bool packed, bool optional) {
  if (!packed) return check_list_like(op, name, state, "params", params, dtype, optional);
  if (optional && state.empty()) return;
  int64_t numel = 0;
  for (const Tensor& param : params) numel += segment_elems(param.numel(), itemsize_of(dtype));
  check_packed(op, name, state, dtype, numel, params);
}

void check_state_masks(const char* op, const char* name, const TensorList& masks, const TensorList& params,
                       bool packed) {
  if (!packed) return check_masks(op, name, masks, "params", params);
  if (masks.empty()) return;
  int64_t bytes = 0;
  for (const Tensor& param : params) bytes += segment_elems((param.numel() + 7) / 8, 1);
  check_packed(op, name, masks, ScalarType::Byte, bytes, params);
}

void check_state_steps(const char* op, const char* name, const TensorList& steps, const TensorList& params, bool packed,
                       bool optional) {
  if (!packed) return check_steps(op, name, steps, "params", params, optional);
  if (optional && steps.empty()) return;
  check_packed(op, name, steps, ScalarType::Float, static_cast<int64_t>(params.size()), params);
}

void check_scalar(const char* op, const char* name, const Tensor& scalar, const Tensor& like) {
  const ScalarType dtype = scalar.scalar_type();
  TORCH_IRE_CHECK((dtype == ScalarType::Float || dtype == ScalarType::Double) && scalar.numel() == 1, op, name,
                  ": expected one float32 or float64 number, got ", name_of(dtype), " of shape ", shape_of(scalar));
  TORCH_IRE_CHECK(scalar.device() == like.device(), op, name, ": expected device ", device_name(like), ", got ",
                  device_name(scalar));
}

void check_score_scalar(const char* op, const char* name, const Tensor& scalar, const Tensor& like) {
  TORCH_IRE_CHECK(is_floating(scalar.scalar_type()) && scalar.numel() == 1, op, name,
                  ": expected one float32, float64, bfloat16 or float16 number, got ", name_of(scalar.scalar_type()),
                  " of shape ", shape_of(scalar));
  TORCH_IRE_CHECK(scalar.device() == like.device(), op, name, ": expected device ", device_name(like), ", got ",
                  device_name(scalar));
}

void check_step_scalars(const char* op, const Tensor& like, const OptionalTensor& grad_scale,
                        const OptionalTensor& found_inf, const OptionalTensor& lr_tensor,
                        const OptionalTensor& kappa_tensor) {
  if (grad_scale.has_value()) check_scalar(op, "grad_scale", *grad_scale, like);
  if (found_inf.has_value()) check_scalar(op, "found_inf", *found_inf, like);
  if (lr_tensor.has_value()) check_scalar(op, "lr_tensor", *lr_tensor, like);
  if (kappa_tensor.has_value()) check_scalar(op, "kappa_tensor", *kappa_tensor, like);
}

void check_rounding(const char* op, const TensorList& compensations, const TensorList& master_params,
                    const std::vector<int64_t>& keys, const TensorList& params, bool packed) {
  const ScalarType dtype = params[0].scalar_type();
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  check_state(op, "compensations", compensations, params, dtype, packed, /*optional=*/true);
  check_state(op, "master_params", master_params, params, opmath_dtype(dtype), packed, /*optional=*/true);
  TORCH_IRE_CHECK(half || compensations.empty(), op, "compensations: expected none for params of ", name_of(dtype),
                  ", which lose nothing, got ", compensations.size());
  TORCH_IRE_CHECK(half || master_params.empty(), op, "master_params: expected none for params of ", name_of(dtype),
                  ", which lose nothing, got ", master_params.size());
  TORCH_IRE_CHECK(int(!compensations.empty()) + int(!master_params.empty()) + int(!keys.empty()) <= 1, op,
                  "compensations, master_params, rounding_keys: expected one of them at most");
  if (keys.empty()) return;
  TORCH_IRE_CHECK(keys.size() == params.size(), op, "rounding_keys: expected one key for each of the ", params.size(),
                  " params, got ", keys.size());
  TORCH_IRE_CHECK(dtype == ScalarType::BFloat16, op, "rounding_keys: stochastic rounding is for bfloat16 params, got ",
                  name_of(dtype));
}

double scalar_value(const Tensor& scalar) {
  double value = 0.0;
  dispatch_floating(scalar.scalar_type(), [&](auto tag) {
    value = static_cast<double>(to_opmath(*data_of<typename decltype(tag)::type>(scalar)));
  });
  return value;
}

}  // namespace torch_ire
