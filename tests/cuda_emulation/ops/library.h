#pragma once

#include <torch/csrc/stable/library.h>

// The emulation's meaning of csrc/ops/library.h: the CUDA operators under another name, for tensors of the CPU.
#define TORCH_IRE_OPERATOR(name, signature, cpu, cuda)    \
  STABLE_TORCH_LIBRARY_FRAGMENT(torch_ire_emulated, m) {  \
    m.def(name signature);                                \
  }                                                       \
  STABLE_TORCH_LIBRARY_IMPL(torch_ire_emulated, CPU, m) { \
    m.impl(name, TORCH_BOX(&cuda));                       \
  }
