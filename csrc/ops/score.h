#pragma once

#include <string>

#include "math/score.h"
#include "ops/dispatch.h"

namespace torch_ire {

inline Score parse_score(const char* op, const std::string& name) {
  if (name == "value") return Score::value;
  if (name == "abs") return Score::absolute;
  TORCH_IRE_CHECK(name == "square", op, "score: expected \"value\", \"abs\" or \"square\", got \"", name, "\"");
  return Score::square;
}

inline void check_rank(const char* op, int64_t k, const TensorList& tensors) {
  int64_t total = 0;
  for (const Tensor& tensor : tensors) total += tensor.numel();
  TORCH_IRE_CHECK(k >= 1 && k <= total, op, "k: expected 1 <= k <= ", total, ", the number of elements, got ", k);
}

// dtype of the k-th smallest score: a value or magnitude is one of the tensor's numbers, a square is float32.
inline ScalarType score_dtype(ScalarType dtype, Score score) {
  return score == Score::square ? ScalarType::Float : dtype;
}

// Writes a score of tensors of T to a number of score_dtype.
template <class T, Score score>
void store_score(const Tensor& number, score_t<T, score> value) {
  if constexpr (score == Score::square)
    *data_of<float>(number) = value;
  else
    *data_of<T>(number) = round_nearest<T>::from(value);
}

template <Score value>
struct score_tag {
  static constexpr Score score = value;
};

// Calls f(type_tag<T>{}, score_tag<score>{}).
template <class F>
void dispatch_scores(ScalarType dtype, Score score, F&& f) {
  dispatch_floating(dtype, [&](auto type) {
    switch (score) {
      case Score::absolute: return f(type, score_tag<Score::absolute>{});
      case Score::square: return f(type, score_tag<Score::square>{});
      default: return f(type, score_tag<Score::value>{});
    }
  });
}

}  // namespace torch_ire
