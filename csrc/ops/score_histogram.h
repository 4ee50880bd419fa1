#pragma once

#include <string>

#include "math/key_digit.h"
#include "math/score_key.h"
#include "ops/score.h"

namespace torch_ire {

// Shared by the CPU and the CUDA operator; returns what is ranked. The list may be empty: a process without tensors
// takes part in a ranking with zeros.
inline Score check_score_histogram(const TensorList& tensors, const Tensor& prefix, int64_t shift,
                                   const std::string& score, bool wide) {
  constexpr const char* op = "score_histogram";
  if (!tensors.empty()) check_leading_list(op, "tensors", tensors);
  TORCH_IRE_CHECK(prefix.scalar_type() == ScalarType::Long && prefix.numel() == 1, op,
                  "prefix: expected one int64 number, got ", name_of(prefix.scalar_type()), " of shape ",
                  shape_of(prefix));
  TORCH_IRE_CHECK(tensors.empty() || prefix.device() == tensors[0].device(), op, "prefix: expected device ",
                  device_name(tensors[0]), ", got ", device_name(prefix));
  const Score parsed = parse_score(op, score);
  const bool float64 =
      wide || (!tensors.empty() && score_dtype(opmath_dtype(tensors[0].scalar_type()), parsed) == ScalarType::Double);
  // an empty list may belong to a ranking of either width
  const int bits = float64 || tensors.empty() ? 64 : 32;
  TORCH_IRE_CHECK(shift >= 0 && shift < bits, op, "shift: expected 0 <= shift < ", bits, ", got ", shift);
  return parsed;
}

template <class T>
struct key_tag {
  using key = T;
};

// Calls f(type_tag<T>{}, score_tag<score>{}, key_tag<Key>{}).
template <class F>
void dispatch_keys(ScalarType dtype, Score score, bool wide, F&& f) {
  dispatch_scores(dtype, score, [&](auto type, auto what) {
    using Own = score_key_t<typename decltype(type)::type, decltype(what)::score>;
    if (wide)
      f(type, what, key_tag<int64_t>{});
    else
      f(type, what, key_tag<Own>{});
  });
}

}  // namespace torch_ire
