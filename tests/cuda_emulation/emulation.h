#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <vector>

// A machine that executes kernels on the host: one fiber a thread, one block after the other. A fiber runs until it
// meets a barrier or a warp collective, then another one runs that can; which one is drawn at random, and so is the
// order of the blocks. Code that relies on an order which CUDA does not promise, say because a barrier is missing, then
// gives other results under some seed. Shared memory starts as garbage, as on the device.
namespace emulation {

struct Index {
  unsigned x, y, z;
};

struct Configuration {
  uint64_t seed = 0;
  unsigned max_threads = 0;  // launches of more threads a block get this many; 0: as asked
};

void configure(const Configuration& configuration);
uint64_t launches();    // since the library was loaded
const char* failure();  // why the last launch failed, or ""

struct Shape {
  Index grid, block;
  size_t shared_bytes, parameter_bytes;
};

// Runs kernel() once for every thread of every block.
void run(const Shape& shape, const std::function<void()>& kernel);

void block_barrier();

enum class Collective { kShuffle, kBallot, kSync };
// Meets the lanes of `mask`; gives this lane the value of lane `source`, or the mask of lanes with a non-zero value.
uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, unsigned source);

unsigned char* dynamic_shared();

// Storage of one __shared__ variable, the same for all threads because blocks follow one another.
class SharedVariable {
 public:
  explicit SharedVariable(size_t bytes);
  void* data() const { return data_; }

 private:
  void* data_;
};

template <class T>
struct SharedStorage {
  static_assert(std::is_trivially_copyable_v<std::remove_all_extents_t<T>>, "shared memory has no constructors");
  SharedVariable variable{sizeof(T)};
  T& get() { return *static_cast<T*>(variable.data()); }
};

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof value);
  return word;
}
template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline Index as_index(unsigned x) {
  return {x, 1, 1};
}
inline Index as_index(const Index& i) {
  return i;
}

template <class... Parameters, class... Arguments, class Grid, class Block>
void launch(void (*kernel)(Parameters...), Grid grid, Block block, size_t shared_bytes, const Arguments&... arguments) {
  const Shape shape{as_index(grid), as_index(block), shared_bytes, (sizeof(Arguments) + ... + 0)};
  run(shape, [&] { kernel(arguments...); });
}

extern Index thread_index, block_index, block_dim, grid_dim;

}  // namespace emulation
