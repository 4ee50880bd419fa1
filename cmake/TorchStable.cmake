# torch for the ops target: its headers, restricted to the stable ABI of the floor version, and the two libraries that carry the C shims.

# 2.10 is the first version in which lists of tensors cross the stable ABI; pyproject.toml asks for the same version at run time.
set(TORCH_IRE_TARGET_VERSION 0x020A000000000000)

find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util as u; s = u.find_spec('torch'); print(list(s.submodule_search_locations)[0] if s else '')"
  OUTPUT_VARIABLE torch_root OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
if(NOT EXISTS "${torch_root}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "torch-ire needs the headers of torch >= 2.10 to build; found '${torch_root}' for ${Python_EXECUTABLE}")
endif()

# libtorch.so comes first: on a CUDA torch it brings libtorch_cuda.so, and with it the stream shim, into the lookup scope of _C, while a CPU torch
# has the same file without it.
add_library(torch_ire_torch INTERFACE)
add_library(torch_ire::torch ALIAS torch_ire_torch)
if(NOT APPLE)
  target_link_options(torch_ire_torch INTERFACE "LINKER:--no-as-needed")
endif()
target_link_libraries(
  torch_ire_torch INTERFACE "${torch_root}/lib/libtorch${CMAKE_SHARED_LIBRARY_SUFFIX}"
                            "${torch_root}/lib/libtorch_cpu${CMAKE_SHARED_LIBRARY_SUFFIX}")

function(torch_ire_stable_abi target)
  target_include_directories(${target} SYSTEM PRIVATE "${torch_root}/include")
  target_compile_definitions(${target} PRIVATE TORCH_TARGET_VERSION=${TORCH_IRE_TARGET_VERSION})
endfunction()
