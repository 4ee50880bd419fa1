# Decides whether CUDA kernels are built, from TORCH_IRE_CUDA = ON, OFF or AUTO, before any target exists: a target takes its architectures at
# its creation. Sets TORCH_IRE_WITH_CUDA.

# Kernel parameters of 32,764 bytes need CUDA 12.1.
set(torch_ire_oldest_cuda 12.1)

set(TORCH_IRE_WITH_CUDA OFF)
if(NOT TORCH_IRE_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(torch_ire_nvcc nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
    if(torch_ire_nvcc)
      set(CMAKE_CUDA_COMPILER ${torch_ire_nvcc})
    endif()
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(torch_ire_architectures ${CMAKE_CUDA_ARCHITECTURES})
    enable_language(CUDA)
    if(torch_ire_architectures)
      set(CMAKE_CUDA_ARCHITECTURES ${torch_ire_architectures})
    elseif(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
    else()
      # code for the data-centre generations, and PTX of the last for what comes after
      set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
    endif()
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL torch_ire_oldest_cuda)
      set(TORCH_IRE_WITH_CUDA ON)
    elseif(TORCH_IRE_CUDA STREQUAL "ON")
      message(FATAL_ERROR "torch-ire needs CUDA ${torch_ire_oldest_cuda} or newer; found ${CMAKE_CUDA_COMPILER_VERSION}")
    endif()
  elseif(TORCH_IRE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "TORCH_IRE_CUDA=ON, but no nvcc was found; set CUDACXX or CUDA_HOME")
  endif()
endif()

if(TORCH_IRE_WITH_CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  find_package(CUDAToolkit REQUIRED)
  message(STATUS "CUDA kernels: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}")
else()
  message(STATUS "CUDA kernels: none (TORCH_IRE_CUDA=${TORCH_IRE_CUDA})")
endif()

# Flags of a target with CUDA sources.
function(torch_ire_cuda_flags target)
  # without compression every kernel carries its parameters as tens of kilobytes of zeros for each architecture
  # (std::numeric_limits in device code needs the relaxed rule)
  set(flags -Xfatbin=-compress-all --expt-relaxed-constexpr)
  if(TORCH_IRE_WERROR)
    list(APPEND flags -Werror all-warnings)
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${flags}>")
endfunction()

# The runtime is linked statically and stays invisible, so that the module loads beside a torch of any CUDA version or of none.
function(torch_ire_link_cuda target)
  target_link_libraries(${target} PRIVATE CUDA::cudart_static)
  target_link_options(${target} PRIVATE "LINKER:--exclude-libs,ALL")
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
  string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_definitions(
    ${target} PRIVATE TORCH_IRE_WITH_CUDA TORCH_IRE_CUDA_VERSION="${CMAKE_CUDA_COMPILER_VERSION}"
                      TORCH_IRE_CUDA_ARCHITECTURES="${architectures}")
endfunction()
