#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/displacement_flat.h"

namespace torch_ire {

// `keep` is 1 - decay. One launch up to about 730 tensors. No synchronisation, no workspace.
template <class T>
cudaError_t launch_displacement_flat(const std::vector<DisplacementFlatSpan<T>>& spans, const DeviceScalar& kappa,
                                     double keep, cudaStream_t stream);

}  // namespace torch_ire
