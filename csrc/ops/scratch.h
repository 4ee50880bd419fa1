#pragma once

#include <cstddef>
#include <vector>

namespace torch_ire {

// `count` elements of the calling thread that stay allocated between calls, with the values of an earlier call. An
// array of every parameter's pointers is freed at the end of each step otherwise, and from 64 KiB on malloc then sorts
// all small blocks of the process.
template <class S>
std::vector<S>& scratch(size_t count) {
  thread_local std::vector<S> kept;
  kept.resize(count);
  return kept;
}

}  // namespace torch_ire
