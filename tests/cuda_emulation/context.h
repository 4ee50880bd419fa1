#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// A stack and a place in it at which to go on. On x86-64 a switch is a dozen instructions; elsewhere ucontext's, which
// asks the kernel twice a switch.
namespace emulation {

#if defined(__x86_64__)

extern "C" void emulation_switch(void** save, void* load);

class Context {
 public:
  // A context that enters `entry`, which never returns, on the given stack.
  void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
    const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16;
    void** at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // where a return address would be
    *--at = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--at = nullptr;  // the registers that a call keeps
    pointer_ = at;
  }
  static void go(Context& from, Context& to) { emulation_switch(&from.pointer_, to.pointer_); }

 private:
  void* pointer_ = nullptr;
};

#else

class Context {
 public:
  void prepare(unsigned char* stack, size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  static void go(Context& from, Context& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};

#endif

}  // namespace emulation
