#pragma once

#include "math/host_device.h"

// IRE on SGD (arXiv 2405.20763, Algorithm 1), one coordinate. With n in {0, 1} the coordinate's flat bit, mu the
// momentum and d the dampening,
//
//   u = g + weight_decay theta,   b <- mu b + (1 - d) u   (b <- u in the first step),
//   theta <- theta - (1 + kappa n) lr (u + mu b  if nesterov, else b).
//
// The L2 decay is part of u and of the momentum, so it is amplified with the rest of the displacement.
namespace torch_ire {

struct SgdHyperparameters {
  double lr, momentum, dampening, weight_decay, kappa;
};

// What the coordinates of one tensor share, computed once in double; lr[0] is for sharp coordinates, lr[1] for flat
// ones.
template <class opmath>
struct SgdCoefficients {
  opmath momentum, intake, weight_decay, lr[2];
};

template <class opmath>
TORCH_IRE_HD SgdCoefficients<opmath> sgd_coefficients(const SgdHyperparameters& h, bool first_step) {
  return {static_cast<opmath>(h.momentum),
          static_cast<opmath>(first_step ? 1.0 : 1.0 - h.dampening),
          static_cast<opmath>(h.weight_decay),
          {static_cast<opmath>(h.lr), static_cast<opmath>(h.lr * (1.0 + h.kappa))}};
}

enum class SgdMomentum { kNone, kHeavyBall, kNesterov };

template <SgdMomentum kMomentum, class opmath>
TORCH_IRE_HD opmath sgd_flat_step(opmath theta, opmath g, opmath* b, bool flat, const SgdCoefficients<opmath>& c) {
  opmath direction = g + c.weight_decay * theta;
  if constexpr (kMomentum != SgdMomentum::kNone) {
    const opmath u = direction;
    const opmath new_b = c.momentum * *b + c.intake * u;
    *b = new_b;
    direction = kMomentum == SgdMomentum::kNesterov ? u + c.momentum * new_b : new_b;
  }
  return theta - (flat ? c.lr[1] : c.lr[0]) * direction;
}

}  // namespace torch_ire
