#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda_types.h"
#include "kernels/device_scalar.h"
#include "math/number.h"
#include "math/sam.h"

namespace torch_ire {

// One tensor of the list: every pointer has numel elements of the tensor's memory order.
template <class T>
struct SamPerturbSpan {
  T* theta;
  const T* grad;
  T* backup;  // receives theta as it was
  int64_t numel;
};

// Coordinates [begin, end) of one tensor. `scale` is rho / norm, 0 where the norm is not finite.
template <class T>
void sam_perturb_range_cpu(const SamPerturbSpan<T>& span, opmath_t<T> scale, bool adaptive, int64_t begin, int64_t end);

#ifdef TORCH_IRE_WITH_CUDA

struct SamPerturbCudaParams {
  DeviceScalar norm;
  double rho;
  bool adaptive;
};

// One launch up to about 730 tensors. No synchronisation, no workspace.
template <class T>
cudaError_t launch_sam_perturb(const std::vector<SamPerturbSpan<T>>& spans, const SamPerturbCudaParams& params,
                               cudaStream_t stream);

#endif

}  // namespace torch_ire
