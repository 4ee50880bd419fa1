#pragma once

#include <cstdint>

// Launch shapes. None has been chosen by a measurement yet: `python -m benchmarks.gpu` is the command that will, and
// the reasoning that stands in for it is beside each number.
namespace torch_ire {

// An SM moves about 36 bytes a nanosecond (4.8 TB/s over 132) and a load takes under a microsecond, so 36 KB must be in
// flight: 64 bytes a thread, as the steps load, and three blocks of 256 threads are enough.
constexpr int kStreamThreads = 256;

// Blocks of a step that an SM must be able to hold, which caps the registers of a thread: at 64, and at 80 for float64,
// whose updates would spill at 64.
template <class T>
constexpr int kStreamBlocks = sizeof(T) == 8 ? 3 : 4;

// Elements of one block of a streaming kernel: long enough that the block's set-up (which tensor, which coefficients;
// about a microsecond) is small beside its share of memory traffic, short enough that a model of 25 M parameters still
// makes several waves of blocks.
constexpr int64_t kStreamChunk = 8192;

// 16-byte loads that a thread of a reading kernel has in flight: with four blocks on an SM nearly twice what is needed,
// so that the barriers between chunks do not show.
constexpr int kVectorsInFlight = 4;

// Blocks of a reduction: a number of its own, not the device's, so that every GPU adds in the same order; nearly eight
// for each of 132 SMs.
constexpr int64_t kReduceBlocks = 1024;

// Kernel parameters by value: the limit of CUDA 12.1 and later, and what is kept back for a kernel's scalars.
constexpr int64_t kMaxParameterBytes = 32764;
constexpr int64_t kScalarBytes = 508;

// The largest grid in x.
constexpr int64_t kMaxGrid = 2147483647;

}  // namespace torch_ire
