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

// dtype of the k-th smallest score: a value or magnitude is one of the tensor's numbers, a square is float32.
inline ScalarType score_dtype(ScalarType dtype, Score score) {
  return score == Score::square ? ScalarType::Float : dtype;
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
