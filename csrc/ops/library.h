#pragma once

#include <torch/csrc/stable/library.h>

// Where operators are registered. The tests build the schemas and the CUDA operators a second time, under a namespace
// of their own and for CPU tensors, with another header of this name (tests/cuda_emulation).
#define TORCH_IRE_LIBRARY(m) STABLE_TORCH_LIBRARY(torch_ire, m)
#define TORCH_IRE_CUDA_OPERATORS(m) STABLE_TORCH_LIBRARY_IMPL(torch_ire, CUDA, m)
