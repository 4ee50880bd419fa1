#pragma once

#include <cuda_runtime_api.h>

#include "ops/checks.h"

// The emulation's meaning of csrc/ops/cuda_stream.h: no device to make current, no stream.
namespace torch_ire {

class CudaContext {
 public:
  explicit CudaContext(const Tensor& tensor) { TORCH_IRE_CHECK(tensor.is_cpu(), "emulation", "expected a CPU tensor"); }
  cudaStream_t stream() const { return nullptr; }
};

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace torch_ire
