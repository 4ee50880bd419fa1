#pragma once

// Nothing on a build without CUDA, so that the files of the operators include it in any case.
#ifdef TORCH_IRE_WITH_CUDA

// The stream shim is declared for CUDA builds only.
#define USE_CUDA
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#undef USE_CUDA

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "ops/checks.h"

// Weak: a CPU-only torch does not have this function, and the module must load there all the same. No CUDA tensor
// exists on such a torch, so nobody gets as far as calling it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace torch_ire {

// Makes the device of a tensor current and gives its current stream.
class CudaContext {
 public:
  explicit CudaContext(const Tensor& tensor) : guard_(tensor.get_device()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

inline void check_cuda(const char* op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, cudaGetErrorName(error), ": ", cudaGetErrorString(error));
}

}  // namespace torch_ire

#endif
