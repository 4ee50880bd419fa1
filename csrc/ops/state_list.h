#pragma once

#include "kernels/packed_layout.h"
#include "kernels/stored_param.h"
#include "ops/dispatch.h"

namespace torch_ire {

// Data of one kind of state, parameter by parameter: in one tensor each or, packed, in the segments of one tensor.
template <class T>
class StateList {
 public:
  StateList(const TensorList& list, bool packed)
      : list_(list), packed_(packed && !list.empty()), segment_(packed_ ? data_of<T>(list[0]) : nullptr) {}

  // Data of the next parameter, which has `numel` elements here; null if the list is empty.
  T* next(int64_t numel) {
    if (!packed_) return data_or_null<T>(list_, next_++);
    T* data = segment_;
    segment_ += segment_elems(numel, sizeof(T));
    return data;
  }

 private:
  const TensorList& list_;
  const bool packed_;
  T* segment_;
  size_t next_ = 0;
};

// The counter of the i-th parameter; null if the list is empty.
inline float* step_of(const TensorList& state_steps, bool packed, size_t i) {
  if (!packed || state_steps.empty()) return data_or_null<float>(state_steps, i);
  return data_of<float>(state_steps[0]) + i;
}

// The rounding that the given lists choose; check_rounding has seen that they agree.
inline Rounding rounding_of(const TensorList& compensations, const TensorList& master_params,
                            const std::vector<int64_t>& rounding_keys) {
  if (!compensations.empty()) return Rounding::kKahan;
  if (!master_params.empty()) return Rounding::kMaster;
  return rounding_keys.empty() ? Rounding::kNearest : Rounding::kStochastic;
}

// The parameters of a step, one after another.
template <class T>
class StoredParams {
 public:
  StoredParams(const TensorList& params, const TensorList& restore_from, const TensorList& compensations,
               const TensorList& master_params, bool packed)
      : params_(params),
        restore_from_(restore_from),
        compensations_(compensations, packed),
        master_params_(master_params, packed) {}

  StoredParam<T> next(int64_t numel) {
    const size_t i = next_++;
    T* theta = data_of<T>(params_[i]);
    const T* backup = data_or_null<T>(restore_from_, i);
    return {theta, backup != nullptr ? backup : theta, compensations_.next(numel), master_params_.next(numel)};
  }

 private:
  const TensorList& params_;
  const TensorList& restore_from_;
  StateList<T> compensations_;
  StateList<opmath_t<T>> master_params_;
  size_t next_ = 0;
};

}  // namespace torch_ire
