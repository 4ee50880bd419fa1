#pragma once

#include "kernels/stored_param.h"
#include "ops/dispatch.h"

namespace torch_ire {

// Which lists are there says how results are rounded; check_rounding has seen that they do not contradict each other.
inline Rounding rounding_of(const TensorList& compensations, const TensorList& master_params,
                            const std::vector<int64_t>& rounding_keys) {
  if (!compensations.empty()) return Rounding::kKahan;
  if (!master_params.empty()) return Rounding::kMaster;
  return rounding_keys.empty() ? Rounding::kNearest : Rounding::kStochastic;
}

// The i-th parameter of a step.
template <class T>
StoredParam<T> stored_param(const TensorList& params, const TensorList& restore_from, const TensorList& compensations,
                            const TensorList& master_params, size_t i) {
  T* theta = data_of<T>(params[i]);
  const T* backup = data_or_null<T>(restore_from, i);
  return {theta, backup != nullptr ? backup : theta, data_or_null<T>(compensations, i),
          data_or_null<opmath_t<T>>(master_params, i)};
}

}  // namespace torch_ire
