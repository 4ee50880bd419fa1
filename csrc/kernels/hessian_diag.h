#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"
#include "math/hessian_diag.h"
#include "math/number.h"

namespace torch_ire {

// Coordinates [begin, end) of one tensor.
template <class T>
void hessian_diag_range_cpu(opmath_t<T>* hessian_diag, const T* grad,
                            const HessianDiagCoefficients<opmath_t<T>>& coefficients, int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

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

#endif

}  // namespace torch_ire
