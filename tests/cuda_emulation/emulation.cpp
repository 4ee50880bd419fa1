#include "emulation.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>

#include "context.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
asm(R"(
.text
.hidden emulation_switch
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");
#endif

namespace emulation {

Index thread_index, block_index, block_dim, grid_dim;

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 * 1024;
constexpr size_t kMaxParameterBytes = 32764;
constexpr unsigned char kGarbage = 0xcd;

enum class State { kReady, kAtBlockBarrier, kInCollective, kDone };

struct Fiber {
  Context context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStackBytes]};
  State state = State::kReady;
  void* fake_stack = nullptr;
  // the collective that it waits in
  Collective kind = Collective::kSync;
  unsigned mask = 0, source = 0;
  uint64_t value = 0, result = 0;
};

struct SharedBlock {
  size_t bytes;
  std::unique_ptr<uint64_t[]> words;  // one allocation a variable, so that a sanitizer sees what runs past its end
};

Configuration configuration;
uint64_t launch_count = 0;
std::string failure_text;
std::mutex one_launch;

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<SharedBlock> shared_blocks;
std::vector<uint64_t> dynamic_words;
unsigned current = 0;
Context scheduler;
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
const std::function<void()>* running = nullptr;
uint64_t random_state = 0;

uint64_t next_random() {  // splitmix64
  uint64_t x = random_state += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

void fail(const std::string& text) {
  if (failure_text.empty()) failure_text = text;
}

// A sanitizer that follows the stack pointer has to be told about every change of stack.
void begin_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, bytes);
#endif
}
void end_switch([[maybe_unused]] void* saved, [[maybe_unused]] const void** bottom, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, bytes);
#endif
}

void to_scheduler(bool last) {
  Fiber& fiber = *fibers[current];
  begin_switch(last ? nullptr : &fiber.fake_stack, scheduler_stack, scheduler_stack_bytes);
  Context::go(fiber.context, scheduler);
  end_switch(fiber.fake_stack, &scheduler_stack, &scheduler_stack_bytes);
}

void to_fiber(unsigned t) {
  Fiber& fiber = *fibers[t];
  current = t;
  thread_index = {t % block_dim.x, t / block_dim.x % block_dim.y, t / (block_dim.x * block_dim.y)};
  begin_switch(&scheduler_fake_stack, fiber.stack.get(), kStackBytes);
  Context::go(scheduler, fiber.context);
  end_switch(scheduler_fake_stack, nullptr, nullptr);
}

void fiber_main() {
  end_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  (*running)();
  fibers[current]->state = State::kDone;
  to_scheduler(/*last=*/true);
}

// Completes the collective that thread t waits in, if all lanes of its mask are there.
bool complete_collective(unsigned t, unsigned threads) {
  const unsigned warp = t / kWarp * kWarp;
  const unsigned mask = fibers[t]->mask;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    if (warp + lane >= threads || fibers[warp + lane]->state == State::kDone) {
      fail("a warp collective waits for a lane that does not exist or has ended");
      return false;
    }
    const Fiber& other = *fibers[warp + lane];
    if (other.state != State::kInCollective || other.mask != mask || other.kind != fibers[t]->kind) return false;
  }
  uint64_t ballot = 0;
  for (unsigned lane = 0; lane < kWarp; ++lane)
    if ((mask >> lane & 1) != 0 && fibers[warp + lane]->value != 0) ballot |= uint64_t{1} << lane;
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fiber& fiber = *fibers[warp + lane];
    if (fiber.kind == Collective::kShuffle) {
      if (fiber.source >= kWarp || (mask >> fiber.source & 1) == 0) {
        fail("a shuffle reads a lane outside its mask");
        return false;
      }
      fiber.result = fibers[warp + fiber.source]->value;
    } else {
      fiber.result = ballot;
    }
    fiber.state = State::kReady;
  }
  return true;
}

// Runs the fibers of one block to their end, in random order.
void run_block(unsigned threads) {
  for (SharedBlock& block : shared_blocks) std::memset(block.words.get(), kGarbage, block.bytes);
  std::fill(dynamic_words.begin(), dynamic_words.end(), kGarbage * 0x0101010101010101ull);
  std::vector<unsigned> ready(threads);
  std::iota(ready.begin(), ready.end(), 0u);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = *fibers[t];
    fiber.state = State::kReady;
    fiber.context.prepare(fiber.stack.get(), kStackBytes, fiber_main);
  }
  unsigned done = 0, at_barrier = 0;
  while (done < threads && failure_text.empty()) {
    if (ready.empty()) {
      // A barrier opens when every thread that has not ended has come to it.
      if (at_barrier == 0 || at_barrier + done < threads) {
        fail("deadlock: some threads wait at a barrier or in a warp collective that the others do not reach");
        return;
      }
      for (unsigned t = 0; t < threads; ++t) {
        if (fibers[t]->state != State::kAtBlockBarrier) continue;
        fibers[t]->state = State::kReady;
        ready.push_back(t);
      }
      at_barrier = 0;
    }
    const size_t pick = next_random() % ready.size();
    const unsigned t = ready[pick];
    ready[pick] = ready.back();
    ready.pop_back();
    to_fiber(t);
    switch (fibers[t]->state) {
      case State::kDone: ++done; break;
      case State::kAtBlockBarrier: ++at_barrier; break;
      case State::kInCollective: {
        const unsigned mask = fibers[t]->mask;
        if (complete_collective(t, threads))
          for (unsigned lane = 0; lane < kWarp; ++lane)
            if ((mask >> lane & 1) != 0) ready.push_back(t / kWarp * kWarp + lane);
        break;
      }
      case State::kReady: fail("a fiber came back without a reason"); break;
    }
  }
}

}  // namespace

void configure(const Configuration& asked) {
  const std::lock_guard<std::mutex> lock(one_launch);
  configuration = asked;
}
uint64_t launches() {
  return launch_count;
}
const char* failure() {
  return failure_text.c_str();
}
unsigned char* dynamic_shared() {
  return reinterpret_cast<unsigned char*>(dynamic_words.data());
}

SharedVariable::SharedVariable(size_t bytes) {
  const size_t words = (bytes + 7) / 8;
  shared_blocks.push_back({words * 8, std::unique_ptr<uint64_t[]>(new uint64_t[words])});
  data_ = shared_blocks.back().words.get();
  std::memset(data_, kGarbage, words * 8);
}

void block_barrier() {
  fibers[current]->state = State::kAtBlockBarrier;
  to_scheduler(/*last=*/false);
}

uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, unsigned source) {
  Fiber& fiber = *fibers[current];
  fiber.kind = kind;
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  if ((mask >> (current % kWarp) & 1) == 0) fail("a lane takes part in a warp collective whose mask leaves it out");
  fiber.state = State::kInCollective;
  to_scheduler(/*last=*/false);
  return fiber.result;
}

void run(const Shape& shape, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(one_launch);
  ++launch_count;
  failure_text.clear();
  random_state = configuration.seed + launch_count;
  block_dim = shape.block;
  grid_dim = shape.grid;
  if (configuration.max_threads != 0 && block_dim.y * block_dim.z == 1)
    block_dim.x = std::min(block_dim.x, configuration.max_threads);
  const unsigned threads = block_dim.x * block_dim.y * block_dim.z;
  const uint64_t blocks = uint64_t{grid_dim.x} * grid_dim.y * grid_dim.z;
  if (threads == 0 || threads > kMaxThreads || blocks == 0) return fail("invalid launch shape");
  if (shape.shared_bytes > kMaxSharedBytes) return fail("too much dynamic shared memory");
  if (shape.parameter_bytes > kMaxParameterBytes) return fail("too many bytes of kernel parameters");
  dynamic_words.assign((shape.shared_bytes + 7) / 8, 0);
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  running = &kernel;
  // A random order of the blocks: start anywhere and go on in steps that have no factor in common with their number.
  uint64_t step = next_random() % blocks + 1;
  while (std::gcd(step, blocks) != 1) ++step;
  uint64_t block = next_random() % blocks;
  for (uint64_t i = 0; i < blocks && failure_text.empty(); ++i, block = (block + step) % blocks) {
    block_index = {static_cast<unsigned>(block % grid_dim.x), static_cast<unsigned>(block / grid_dim.x % grid_dim.y),
                   static_cast<unsigned>(block / (uint64_t{grid_dim.x} * grid_dim.y))};
    run_block(threads);
  }
}

}  // namespace emulation

extern "C" {
__attribute__((visibility("default"))) void torch_ire_emulation_configure(uint64_t seed, unsigned max_threads) {
  emulation::configure({seed, max_threads});
}
__attribute__((visibility("default"))) uint64_t torch_ire_emulation_launches() {
  return emulation::launches();
}
}
