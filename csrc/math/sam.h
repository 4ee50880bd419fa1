#pragma once

#include <cmath>

#include "math/host_device.h"

// The perturbation of SAM (arXiv 2010.01412, Eq. 2) and ASAM (arXiv 2102.11600, Eq. 5 with eta = 0), one coordinate:
//
//   theta <- theta + rho g / (||g|| + 1e-12)   or   theta <- theta + rho theta^2 g / (|| |theta| g || + 1e-12).
namespace torch_ire {

// A norm that is not finite moves nothing: one bad gradient element must not reach every parameter.
TORCH_IRE_HD double sam_scale(double rho, double norm) {
  return std::isfinite(norm) ? rho / (norm + 1e-12) : 0.0;
}

template <class opmath>
TORCH_IRE_HD opmath sam_perturb_step(opmath theta, opmath g, opmath scale, bool adaptive) {
  const opmath direction = adaptive ? theta * theta * g : g;
  return scale != opmath(0) ? theta + scale * direction : theta;  // 0 * inf is not 0
}

}  // namespace torch_ire
