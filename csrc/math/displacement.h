#pragma once

#include "math/host_device.h"

// IRE after a step that any optimizer took (arXiv 2405.20763, Algorithm 1), one coordinate: with Delta = theta -
// previous,
//
//   theta <- theta + kappa n (Delta + decay previous).
//
// decay = 0 amplifies the whole displacement; decay = lr weight_decay leaves a decoupled weight decay as it is. kappa =
// 0 changes nothing, also if the displacement is infinite.
namespace torch_ire {

template <class opmath>
TORCH_IRE_HD opmath displacement_flat_step(opmath theta, opmath previous, bool flat, opmath kappa, opmath keep) {
  // kappa = 0 and a coordinate that has not moved change nothing: 0 times infinity is no number, nor is a difference of
  // infinities
  return flat && kappa != opmath(0) && (theta != previous || keep != opmath(1))
             ? theta + kappa * (theta - keep * previous)
             : theta;
}

}  // namespace torch_ire
