// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define DEQ_EMULATION_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DEQ_EMULATION_ASAN 1
#endif
#endif
#ifdef DEQ_EMULATION_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// _longjmp under another name: _FORTIFY_SOURCE would replace it by a check that takes a jump to
// another stack for a mistake.
extern "C" [[noreturn]] void deq_emulation_jump(jmp_buf, int) noexcept __asm__("_longjmp");

namespace deq_emulation {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what);
  std::abort();
}

/// A place of the program to come back to, on a stack of its own.
struct Continuation {
  jmp_buf place;
#ifdef DEQ_EMULATION_ASAN
  const void* stack_begin = nullptr;
  std::size_t stack_bytes = 0;
  void* fake_stack = nullptr;
#endif
};

#ifdef DEQ_EMULATION_ASAN
inline Continuation* switched_from = nullptr;
inline void before_switch(Continuation& from, const Continuation& to) {
  switched_from = &from;
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_begin, to.stack_bytes);
}
inline void after_switch(void* fake_stack) {
  __sanitizer_finish_switch_fiber(fake_stack, &switched_from->stack_begin,
                                  &switched_from->stack_bytes);
}
inline void after_switch(Continuation& here) { after_switch(here.fake_stack); }
#else
inline void before_switch(Continuation&, const Continuation&) {}
inline void after_switch(void*) {}
inline void after_switch(Continuation&) {}
#endif

/// Leaves `from` here and goes on at `to`. No system call, unlike swapcontext.
[[gnu::noinline]] inline void switch_to(Continuation& from, Continuation& to) {
  before_switch(from, to);
  if (_setjmp(from.place) == 0) deq_emulation_jump(to.place, 1);
  after_switch(from);
}

/// A continuation with a new stack. Lives as long as the program.
class Fiber : public Continuation {
 public:
  using Body = void (*)(Fiber&);

  /// A switch to the fiber calls `body`, which must not return. `number`: of fibers so far.
  Fiber(Body body, std::size_t number) : body_(body) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("no memory for the stack of a fiber");
    mprotect(memory, page, PROT_NONE);  // An overflow must not reach the stack below.
    // Stacks that all begin at the same offset of a page would compete for the same few cache sets.
    const std::size_t colour = number % 63 * 192;
    char* stack = static_cast<char*>(memory) + page;
#ifdef DEQ_EMULATION_ASAN
    stack_begin = stack;
    stack_bytes = bytes - colour;
#endif
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes - colour;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    Continuation creator;
    creator_ = &creator;
    starting_ = this;
    before_switch(creator, *this);
    if (_setjmp(creator.place) == 0) setcontext(&context);
    after_switch(creator);
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

 private:
  static constexpr std::size_t bytes = 256 << 10;

  static void enter() {
    after_switch(nullptr);
    Fiber& self = *starting_;
    switch_to(self, *creator_);
    self.body_(self);
  }

  // makecontext passes int only.
  inline static Fiber* starting_ = nullptr;
  inline static Continuation* creator_ = nullptr;

  Body body_;
};

}  // namespace deq_emulation
