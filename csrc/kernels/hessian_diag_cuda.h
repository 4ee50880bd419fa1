#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "kernels/device_scalar.h"
#include "kernels/hessian_diag.h"

namespace torch_ire {

// One tensor of the list: both pointers have numel elements of the tensor's memory order.
template <class T>
struct HessianDiagSpan {
  opmath_t<T>* hessian_diag;
  const T* grad;
  int64_t numel;
};

struct HessianDiagCudaParams {
  double beta, num_predictions;
  DeviceScalar grad_scale;
};

// One launch up to about 890 tensors. No synchronisation, no workspace.
template <class T>
cudaError_t launch_hessian_diag(const std::vector<HessianDiagSpan<T>>& spans, const HessianDiagCudaParams& params,
                                cudaStream_t stream);

}  // namespace torch_ire
