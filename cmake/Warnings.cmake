# The project's own code compiles without a warning; TORCH_IRE_WERROR (on in CI) makes that binding.
function(torch_ire_warnings target)
  set(flags -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor)
  if(TORCH_IRE_WERROR)
    list(APPEND flags -Werror)
  endif()
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${flags}>")
endfunction()
