#pragma once

#include <cstdint>

#include "math/number.h"

namespace torch_ire {

enum class ScalarKind : uint8_t { kNone, kFloat, kDouble, kBfloat16, kFloat16 };

// A scalar that lives in memory of the step's device, where a captured graph finds its value of the day, or else in the
// launch itself.
struct DeviceScalar {
  const void* data;  // one number of the kind
  ScalarKind kind;
  double otherwise;  // the value where the kind is kNone

  TORCH_IRE_HD double value() const {
    switch (kind) {
      case ScalarKind::kFloat: return static_cast<double>(*static_cast<const float*>(data));
      case ScalarKind::kDouble: return *static_cast<const double*>(data);
      case ScalarKind::kBfloat16: return static_cast<double>(to_opmath(*static_cast<const bfloat16*>(data)));
      case ScalarKind::kFloat16: return static_cast<double>(to_opmath(*static_cast<const float16*>(data)));
      default: return otherwise;
    }
  }
};

// What every step can take from memory.
struct StepScalars {
  DeviceScalar lr, kappa, grad_scale, found_inf;
  bool maximize;

  TORCH_IRE_HD bool skip() const { return found_inf.value() != 0.0; }
  TORCH_IRE_HD double grad_factor() const { return (maximize ? -1.0 : 1.0) / grad_scale.value(); }
};

}  // namespace torch_ire
