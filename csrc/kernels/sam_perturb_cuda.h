#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/sam_perturb.h"

namespace torch_ire {

struct SamPerturbCudaParams {
  DeviceScalar norm;
  double rho;
  bool adaptive;
};

// One launch up to about 730 tensors. No synchronisation, no workspace.
template <class T>
cudaError_t launch_sam_perturb(const std::vector<SamPerturbSpan<T>>& spans, const SamPerturbCudaParams& params,
                               cudaStream_t stream);

}  // namespace torch_ire
