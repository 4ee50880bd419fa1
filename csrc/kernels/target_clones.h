#pragma once

// One function, compiled for several generations of x86-64 and chosen when the library is loaded. The loop body must be
// inlined into the function that carries the attribute, hence always_inline on the templates that it calls.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(TORCH_IRE_NO_CLONES)
#define TORCH_IRE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TORCH_IRE_CLONES
#endif
#define TORCH_IRE_INLINE inline __attribute__((always_inline))
#define TORCH_IRE_INLINE_LAMBDA __attribute__((always_inline))
