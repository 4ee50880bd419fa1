#pragma once

#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"

namespace torch_ire {

#ifdef TORCH_IRE_WITH_CUDA

// Adds one to every counter unless found_inf says skip. A launch of its own, after the step's: the blocks of the step
// read the counters in no particular order, so none of them may write one.
cudaError_t launch_advance_steps(const std::vector<float*>& steps, const DeviceScalar& found_inf, cudaStream_t stream);

#endif

}  // namespace torch_ire
