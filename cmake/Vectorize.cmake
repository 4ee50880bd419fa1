# Flags of the CPU kernels. sqrt sets errno and floating-point operations may trap unless told otherwise, and either keeps the compiler
# from vectorising the loops. Contraction is off so that every clone of a kernel (csrc/kernels/target_clones.h) rounds alike: a checkpoint resumes to the
# same bits on another x86-64 machine.
function(torch_ire_vectorize target)
  target_compile_options(
    ${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-O3;-fno-math-errno;-fno-trapping-math;-ffp-contract=off>")
  if(TORCH_IRE_SANITIZE)
    # ifunc resolvers run before the sanitizer is initialised
    target_compile_definitions(${target} PRIVATE TORCH_IRE_NO_CLONES)
  endif()
endfunction()
