#pragma once

#include <cmath>

#include "math/host_device.h"

// IRE on AdamW (arXiv 2405.20763, Algorithm 1; AdamW: arXiv 1711.05101, Algorithm 2), one coordinate. With n in {0, 1}
// the coordinate's flat bit,
//
//   m <- m + (1 - beta1) (g - m),   v <- beta2 v + (1 - beta2) g^2,
//   theta <- theta - (1 + kappa n) lr m / ((1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps)) - (1 + kappa n') lr
//   weight_decay theta,
//
// where n' = n if the weight decay is amplified with the rest of the displacement (the published algorithm) and 0 if
// not.
namespace torch_ire {

struct AdamwHyperparameters {
  double lr, beta1, beta2, eps, weight_decay, kappa;
  bool amplify_weight_decay;
};

// What the coordinates of one tensor share at step t, computed once in double; index 0 is for sharp coordinates, 1 for
// flat ones.
template <class opmath>
struct AdamwCoefficients {
  opmath one_minus_beta1, beta2, one_minus_beta2, eps;
  opmath step_size[2], keep[2];
};

template <class opmath>
TORCH_IRE_HD AdamwCoefficients<opmath> adamw_coefficients(const AdamwHyperparameters& h, double t) {
  AdamwCoefficients<opmath> c;
  c.one_minus_beta1 = static_cast<opmath>(1.0 - h.beta1);
  c.beta2 = static_cast<opmath>(h.beta2);
  c.one_minus_beta2 = static_cast<opmath>(1.0 - h.beta2);
  // m / (sqrt(v) / r + eps) = r m / (sqrt(v) + r eps): one division a coordinate less
  const double r = std::sqrt(1.0 - std::pow(h.beta2, t));
  c.eps = static_cast<opmath>(h.eps * r);
  const double step_size = h.lr * r / (1.0 - std::pow(h.beta1, t));
  const double decay = h.lr * h.weight_decay;
  c.step_size[0] = static_cast<opmath>(step_size);
  c.step_size[1] = static_cast<opmath>(step_size * (1.0 + h.kappa));
  c.keep[0] = static_cast<opmath>(1.0 - decay);
  c.keep[1] = static_cast<opmath>(1.0 - decay * (h.amplify_weight_decay ? 1.0 + h.kappa : 1.0));
  return c;
}

template <class opmath>
TORCH_IRE_HD opmath adamw_flat_step(opmath theta, opmath g, opmath& m, opmath& v, bool flat,
                                    const AdamwCoefficients<opmath>& c) {
  // locals, so that a vectorised loop does not read back what it has just stored
  const opmath new_m = m + c.one_minus_beta1 * (g - m);
  const opmath new_v = c.beta2 * v + c.one_minus_beta2 * g * g;
  m = new_m;
  v = new_v;
  const opmath denominator = std::sqrt(new_v) + c.eps;
  const opmath keep = flat ? c.keep[1] : c.keep[0];
  const opmath step_size = flat ? c.step_size[1] : c.step_size[0];
  return keep * theta - step_size * new_m / denominator;
}

}  // namespace torch_ire
