#include "kernels/advance_steps.h"

#include <algorithm>

#include "kernels/cuda_language.cuh"
#include "kernels/tuning.h"

namespace torch_ire {
namespace {

struct StepPack {
  static constexpr size_t kMaxSteps = (kMaxParameterBytes - kScalarBytes - 16) / sizeof(float*);
  float* steps[kMaxSteps];
  uint32_t count;
};

// grid: at least one block; threads stride over the counters
__global__ void __launch_bounds__(kStreamThreads)
    advance_steps_kernel(TORCH_IRE_GRID_CONSTANT(StepPack) pack, TORCH_IRE_GRID_CONSTANT(DeviceScalar) found_inf) {
  if (found_inf.value() != 0.0) return;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < pack.count; i += gridDim.x * blockDim.x)
    *pack.steps[i] += 1.0f;
}

}  // namespace

cudaError_t launch_advance_steps(const std::vector<float*>& steps, const DeviceScalar& found_inf, cudaStream_t stream) {
  static_assert(sizeof(StepPack) + kScalarBytes <= kMaxParameterBytes, "kernel parameters");
  StepPack pack;
  for (size_t first = 0; first < steps.size(); first += StepPack::kMaxSteps) {
    const size_t count = std::min(steps.size() - first, StepPack::kMaxSteps);
    std::copy_n(steps.data() + first, count, pack.steps);
    pack.count = static_cast<uint32_t>(count);
    const unsigned blocks = static_cast<unsigned>((count + kStreamThreads - 1) / kStreamThreads);
    TORCH_IRE_LAUNCH(advance_steps_kernel, blocks, kStreamThreads, 0, stream, pack, found_inf);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace torch_ire
