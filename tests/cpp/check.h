#pragma once

#include <cstdio>
#include <cstdlib>

// Stops at the first failure, naming the place and, in printf's form, the case.
#define CHECK(condition, ...)                                                                  \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      std::fprintf(stderr, "%s:%d: check failed: %s; case: ", __FILE__, __LINE__, #condition); \
      std::fprintf(stderr, __VA_ARGS__);                                                       \
      std::fprintf(stderr, "\n");                                                              \
      std::exit(1);                                                                            \
    }                                                                                          \
  } while (false)
