#include "ops/checks.h"

#include "kernels/packed_layout.h"
#include "math/number.h"
#include "ops/dispatch.h"

namespace torch_ire {
namespace {

std::string list_of(const int64_t* numbers, int64_t count) {
  std::ostringstream out;
  out << "(";
  for (int64_t d = 0; d < count; ++d) out << (d ? ", " : "") << numbers[d];
  out << ")";
  return out.str();
}

std::string strides_of(const Tensor& tensor) {
  const Geometry g(tensor);
  return list_of(g.strides, g.dim);
}

// What the tensors of a list have in common: strided, of one dtype, on the device of `like`.
class ListKind {
 public:
  // `dtype_note` follows the name of the dtype in messages.
  ListKind(ScalarType dtype, const Tensor& like, std::string dtype_note = {})
      : dtype_(dtype),
        code_(torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype))),
        like_(like),
        like_kind_(like),
        dtype_note_(std::move(dtype_note)) {}

  void check(const char* op, const char* name, size_t i, const Tensor& tensor) const {
    const TensorKind kind(tensor);
    TORCH_IRE_CHECK(kind.is_strided(), op, name, "[", i,
                    "]: expected a strided tensor, got a sparse or otherwise special layout");
    TORCH_IRE_CHECK(kind.dtype == code_, op, name, "[", i, "]: expected ", name_of(dtype_), dtype_note_, ", got ",
                    name_of(tensor.scalar_type()));
    TORCH_IRE_CHECK(kind.same_device(like_kind_), op, name, "[", i, "]: expected device ", device_name(like_), ", got ",
                    device_name(tensor));
  }

 private:
  const ScalarType dtype_;
  const int32_t code_;
  const Tensor& like_;
  const TensorKind like_kind_;
  const std::string dtype_note_;
};

void check_length(const char* op, const char* name, const TensorList& list, const char* leading_name,
                  const TensorList& leading) {
  TORCH_IRE_CHECK(list.size() == leading.size(), op, name, ": expected one tensor for each of the ", leading.size(),
                  " ", leading_name, ", got ", list.size());
}

// A list of state that is packed: one tensor of `numel` elements.
void check_packed(const char* op, const char* name, const TensorList& list, ScalarType dtype, int64_t numel,
                  const TensorList& params) {
  TORCH_IRE_CHECK(list.size() == 1, op, name, ": expected one packed tensor for the ", params.size(), " params, got ",
                  list.size());
  ListKind(dtype, params[0]).check(op, name, 0, list[0]);
  const Geometry g(list[0]);
  TORCH_IRE_CHECK(g.dim == 1 && g.sizes[0] == numel && g.is_contiguous(), op, name, "[0]: expected ", numel,
                  " contiguous elements for the ", params.size(), " params, got shape ", shape_of(list[0]),
                  " with strides ", strides_of(list[0]));
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
  const Geometry g(tensor);
  return list_of(g.sizes, g.dim);
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
  const ListKind kind(dtype, list[0], std::string(" as ") + name + "[0]");
  for (size_t i = 0; i < list.size(); ++i) {
    kind.check(op, name, i, list[i]);
    TORCH_IRE_CHECK(Geometry(list[i]).is_dense(), op, name, "[", i,
                    "]: expected a dense tensor (no gaps, no overlaps), got shape ", shape_of(list[i]),
                    " with strides ", strides_of(list[i]));
  }
}

void check_list_like(const char* op, const char* name, const TensorList& list, const char* leading_name,
                     const TensorList& leading, ScalarType dtype, bool optional) {
  if (optional && list.empty()) return;
  check_length(op, name, list, leading_name, leading);
  const ListKind kind(dtype, leading[0]);
  for (size_t i = 0; i < list.size(); ++i) {
    kind.check(op, name, i, list[i]);
    TORCH_IRE_CHECK(Geometry(list[i]).same_layout(Geometry(leading[i])), op, name, "[", i, "]: expected shape ",
                    shape_of(leading[i]), " and strides ", strides_of(leading[i]), " as ", leading_name, "[", i,
                    "], got ", shape_of(list[i]), " and ", strides_of(list[i]));
  }
}

void check_masks(const char* op, const char* name, const TensorList& masks, const char* leading_name,
                 const TensorList& leading, bool optional) {
  if (optional && masks.empty()) return;
  check_length(op, name, masks, leading_name, leading);
  const ListKind kind(ScalarType::Byte, leading[0], " (packed bits)");
  for (size_t i = 0; i < masks.size(); ++i) {
    kind.check(op, name, i, masks[i]);
    const int64_t numel = Geometry(leading[i]).numel();
    const Geometry g(masks[i]);
    TORCH_IRE_CHECK(g.dim == 1 && g.sizes[0] == (numel + 7) / 8 && g.is_contiguous(), op, name, "[", i, "]: expected ",
                    (numel + 7) / 8, " contiguous bytes for the ", numel, " coordinates of ", leading_name, "[", i,
                    "], got shape ", shape_of(masks[i]));
  }
}

StateLayout::StateLayout(const TensorList& params, bool is_packed) : packed(is_packed) {
  if (!packed) return;
  for (const Tensor& param : params) {
    const int64_t numel = Geometry(param).numel();
    numel2 += segment_elems(numel, 2);
    numel4 += segment_elems(numel, 4);
    numel8 += segment_elems(numel, 8);
    mask_bytes += segment_elems((numel + 7) / 8, 1);
  }
}

int64_t StateLayout::numel(ScalarType dtype) const {
  if (dtype == ScalarType::Double) return numel8;
  return dtype == ScalarType::Float ? numel4 : numel2;
}

void check_state(const char* op, const char* name, const TensorList& state, const TensorList& params, ScalarType dtype,
                 const StateLayout& layout, bool optional) {
  if (optional && state.empty()) return;
  if (layout.packed)
    check_packed(op, name, state, dtype, layout.numel(dtype), params);
  else
    check_list_like(op, name, state, "params", params, dtype);
}

void check_state_masks(const char* op, const char* name, const TensorList& masks, const TensorList& params,
                       const StateLayout& layout) {
  if (masks.empty()) return;
  if (layout.packed)
    check_packed(op, name, masks, ScalarType::Byte, layout.mask_bytes, params);
  else
    check_masks(op, name, masks, "params", params);
}

void check_state_steps(const char* op, const char* name, const TensorList& steps, const TensorList& params,
                       const StateLayout& layout, bool optional) {
  if (optional && steps.empty()) return;
  if (layout.packed)
    return check_packed(op, name, steps, ScalarType::Float, static_cast<int64_t>(params.size()), params);
  check_length(op, name, steps, "params", params);
  const ListKind kind(ScalarType::Float, params[0]);
  for (size_t i = 0; i < steps.size(); ++i) {
    kind.check(op, name, i, steps[i]);
    TORCH_IRE_CHECK(Geometry(steps[i]).numel() == 1, op, name, "[", i, "]: expected one number, got a tensor of shape ",
                    shape_of(steps[i]));
  }
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
                    const std::vector<int64_t>& keys, const TensorList& params, const StateLayout& layout) {
  const ScalarType dtype = params[0].scalar_type();
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  check_state(op, "compensations", compensations, params, dtype, layout, /*optional=*/true);
  check_state(op, "master_params", master_params, params, opmath_dtype(dtype), layout, /*optional=*/true);
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
