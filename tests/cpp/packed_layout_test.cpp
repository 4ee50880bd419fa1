// Where the segments of packed state begin.
#include "kernels/packed_layout.h"

#include <initializer_list>

#include "check.h"

namespace {

using torch_ire::segment_elems;

struct Case {
  int64_t numel, itemsize, expected;
};

// 64 bytes are 64 mask bytes, 32 bfloat16, 16 float32 or 8 float64 elements; an empty parameter takes no space and a
// full segment no padding.
constexpr Case kCases[] = {{1, 1, 64},  {1, 2, 32},  {1, 4, 16},  {1, 8, 8},   {0, 4, 0},
                           {16, 4, 16}, {17, 4, 32}, {35, 8, 40}, {64, 1, 64}, {65, 1, 128}};

}  // namespace

int main() {
  for (const Case& c : kCases)
    CHECK(segment_elems(c.numel, c.itemsize) == c.expected, "%lld elements of %lld bytes",
          static_cast<long long>(c.numel), static_cast<long long>(c.itemsize));

  // the smallest multiple of 64 bytes that holds the elements, beyond 32 bits too
  for (const int64_t itemsize : {1, 2, 4, 8}) {
    for (const int64_t base : {int64_t{0}, int64_t{1} << 33}) {
      for (int64_t numel = base; numel < base + 200; ++numel) {
        const int64_t bytes = segment_elems(numel, itemsize) * itemsize;
        CHECK(bytes % 64 == 0 && bytes >= numel * itemsize && bytes < numel * itemsize + 64,
              "%lld elements of %lld bytes", static_cast<long long>(numel), static_cast<long long>(itemsize));
      }
    }
  }
}
