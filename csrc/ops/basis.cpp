#include "ops/basis.h"

namespace torch_ire {

int64_t row_stride(const Tensor& basis) {
  return basis.stride(0);
}

OptionalTensor check_bases(const char* op, const char* leading_name, const TensorList& leading, const TensorList& bases,
                           const OptionalTensor& gram_inverse) {
  TORCH_IRE_CHECK(bases.size() == leading.size(), op, "bases: expected ", leading.size(), " tensors as in ",
                  leading_name, ", got ", bases.size());
  const ScalarType opmath = opmath_dtype(leading[0].scalar_type());
  const ScalarType basis_dtype = bases[0].scalar_type();
  TORCH_IRE_CHECK(basis_dtype == opmath || (opmath == ScalarType::Float && basis_dtype == ScalarType::BFloat16), op,
                  "bases[0]: expected dtype ", name_of(opmath), opmath == ScalarType::Float ? " or bfloat16" : "",
                  ", got ", name_of(basis_dtype));
  for (size_t i = 0; i < bases.size(); ++i) {
    TORCH_IRE_CHECK(leading[i].is_contiguous(), op, leading_name, "[", i, "]: expected a contiguous tensor");
    TORCH_IRE_CHECK(device_name(bases[i]) == device_name(leading[0]), op, "bases[", i, "]: expected device ",
                    device_name(leading[0]), ", got ", device_name(bases[i]));
    TORCH_IRE_CHECK(bases[i].scalar_type() == basis_dtype, op, "bases[", i, "]: expected dtype ", name_of(basis_dtype),
                    " as bases[0], got ", name_of(bases[i].scalar_type()));
    TORCH_IRE_CHECK(
        bases[i].dim() == 2 && bases[i].size(0) == bases[0].size(0) && bases[i].size(1) == leading[i].numel(), op,
        "bases[", i, "]: expected ", bases[0].dim() == 2 ? bases[0].size(0) : 0, " rows of ", leading[i].numel(),
        " as ", leading_name, "[", i, "], got ", shape_of(bases[i]));
    TORCH_IRE_CHECK(bases[i].size(1) <= 1 || bases[i].stride(1) == 1, op, "bases[", i,
                    "]: expected rows without gaps, got stride ", bases[i].stride(1));
  }
  if (!gram_inverse.has_value()) return std::nullopt;
  const int64_t m = bases[0].size(0);
  TORCH_IRE_CHECK(gram_inverse->dim() == 2 && gram_inverse->size(0) == m && gram_inverse->size(1) == m &&
                      gram_inverse->scalar_type() == opmath && device_name(*gram_inverse) == device_name(leading[0]),
                  op, "gram_inverse: expected a ", m, " x ", m, " matrix of ", name_of(opmath), " on ",
                  device_name(leading[0]), ", got ", shape_of(*gram_inverse), " of ",
                  name_of(gram_inverse->scalar_type()), " on ", device_name(*gram_inverse));
  return torch::stable::contiguous(*gram_inverse);
}

}  // namespace torch_ire
