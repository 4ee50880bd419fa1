#pragma once

#include "math/host_device.h"
#include "math/number.h"

// Running mean of the diagonal curvature estimate (arXiv 2405.20763, Eq. 6), one coordinate: with e = B g^2 the
// estimate of one batch of B predictions,
//
//   h <- beta h + (1 - beta) e.
//
// An estimate that is not finite is left out; a mean that is not finite has seen no estimate yet and starts at the
// first one, so that it needs no bias correction.
namespace torch_ire {

template <class opmath>
struct HessianDiagCoefficients {
  opmath grad_factor, num_predictions, beta, one_minus_beta;
};

template <class opmath>
TORCH_IRE_HD opmath hessian_diag_update(opmath h, opmath g, const HessianDiagCoefficients<opmath>& c) {
  const opmath scaled = g * c.grad_factor;
  const opmath estimate = c.num_predictions * (scaled * scaled);
  const opmath mean = c.beta * h + c.one_minus_beta * estimate;
  const opmath updated = is_finite(h) ? mean : estimate;
  return is_finite(estimate) ? updated : h;
}

}  // namespace torch_ire
