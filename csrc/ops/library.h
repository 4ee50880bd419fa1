#pragma once

#include <torch/csrc/stable/library.h>

#ifdef TORCH_IRE_WITH_CUDA
#define TORCH_IRE_CUDA_IMPLEMENTATION(name, function) \
  STABLE_TORCH_LIBRARY_IMPL(torch_ire, CUDA, m) {     \
    m.impl(name, TORCH_BOX(&function));               \
  }
#else
#define TORCH_IRE_CUDA_IMPLEMENTATION(name, function)
#endif

// Defines an operator and registers its implementations; `signature` is the schema behind the name. The tests build the
// CUDA implementations a second time, under a namespace of their own and for CPU tensors, with another header of this
// name (tests/cuda_emulation).
#define TORCH_IRE_OPERATOR(name, signature, cpu, cuda) \
  STABLE_TORCH_LIBRARY_FRAGMENT(torch_ire, m) {        \
    m.def(name signature);                             \
  }                                                    \
  STABLE_TORCH_LIBRARY_IMPL(torch_ire, CPU, m) {       \
    m.impl(name, TORCH_BOX(&cpu));                     \
  }                                                    \
  TORCH_IRE_CUDA_IMPLEMENTATION(name, cuda)
