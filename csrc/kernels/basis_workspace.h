#pragma once

#include <cstddef>
#include <cstdint>

namespace torch_ire {

// Doubles of workspace for an operator on `rows` rows of a basis for that many tensors.
int64_t basis_workspace(size_t num_tensors, int64_t rows);

}  // namespace torch_ire
