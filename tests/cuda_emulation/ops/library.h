#pragma once

#include <torch/csrc/stable/library.h>

// The emulation's meaning of csrc/ops/library.h: the CUDA operators under another name, for tensors of the CPU.
#define TORCH_IRE_LIBRARY(m) STABLE_TORCH_LIBRARY(torch_ire_emulated, m)
#define TORCH_IRE_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(torch_ire_emulated, CPU, m)
