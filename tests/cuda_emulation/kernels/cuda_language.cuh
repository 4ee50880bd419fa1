#pragma once

#include <cuda_runtime.h>

#include <cmath>

// The emulation's meaning of csrc/kernels/cuda_language.cuh.
#define TORCH_IRE_GRID_CONSTANT(...) const __VA_ARGS__&
#define TORCH_IRE_SHARED(type, name)                      \
  static ::emulation::SharedStorage<type> name##_storage; \
  auto& name = name##_storage.get()
#define TORCH_IRE_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(::emulation::dynamic_shared())
#define TORCH_IRE_UNROLL(count)
#define TORCH_IRE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (static_cast<void>(stream), ::emulation::launch((kernel), (grid), (block), (shared_bytes), __VA_ARGS__))

namespace torch_ire {
inline float exp2_approximate(float x) {
  return std::exp2(x);
}
}  // namespace torch_ire
