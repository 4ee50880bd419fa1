// Importing this module registers torch.ops.torch_ire; its only functions tell how the library was built. No tensor
// passes through here: operators with a schema can be traced, compiled and checked, functions of a pybind11 module
// cannot.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of torch_ire";
  m.attr("version") = TORCH_IRE_VERSION;
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "gcc " __VERSION__;
#endif
#if defined(TORCH_IRE_WITH_CUDA)
  m.attr("with_cuda") = true;
  m.attr("cuda_version") = TORCH_IRE_CUDA_VERSION;
  m.attr("cuda_architectures") = TORCH_IRE_CUDA_ARCHITECTURES;
#else
  m.attr("with_cuda") = false;
  m.attr("cuda_version") = "";
  m.attr("cuda_architectures") = "";
#endif
}
