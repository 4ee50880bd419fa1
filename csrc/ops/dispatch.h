#pragma once

#include "math/number.h"
#include "ops/checks.h"

namespace torch_ire {

template <class T>
struct type_tag {
  using type = T;
};

// Calls f(type_tag<T>{}) with the storage type of `dtype`, which check_leading_list has found to be one of the four.
template <class F>
void dispatch_floating(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Double: return f(type_tag<double>{});
    case ScalarType::BFloat16: return f(type_tag<bfloat16>{});
    case ScalarType::Half: return f(type_tag<float16>{});
    default: return f(type_tag<float>{});
  }
}

template <class T>
T* data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// data of list[i], or null where the list is empty (an optional argument that was not given)
template <class T>
T* data_or_null(const TensorList& list, size_t i) {
  return list.empty() ? nullptr : data_of<T>(list[i]);
}

}  // namespace torch_ire
