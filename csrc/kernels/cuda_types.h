#pragma once

// cudaStream_t and cudaError_t for the declarations of launchers, which a build without CUDA does not have. The only
// header of the kernels that includes one of CUDA's.
#ifdef TORCH_IRE_WITH_CUDA
#include <cuda_runtime_api.h>
#endif
