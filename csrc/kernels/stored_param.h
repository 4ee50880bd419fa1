#pragma once

#include "math/rounding.h"

namespace torch_ire {

// One tensor of parameters: where a step reads theta, where it writes it, and what is kept of it besides. Every pointer
// has the tensor's number of elements, in its memory order.
template <class T>
struct StoredParam {
  T* theta;
  const T* theta_from;  // where the step starts; theta itself, or the backup of a SAM step
  T* compensation;      // Rounding::kKahan alone, else null
  opmath_t<T>* master;  // Rounding::kMaster alone, else null
};

}  // namespace torch_ire
