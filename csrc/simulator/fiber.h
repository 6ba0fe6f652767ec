// A fiber: a function with a stack of its own, resumed and suspended by hand.
//
// AddressSanitizer is told of every switch, or it would take one stack for another.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace bptt::simulator {

class Fiber {
 public:
  explicit Fiber(std::function<void()> body) : body_(std::move(body)) {
    // The lowest page stays closed: a stack that overflows faults there.
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    memory_ = mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory_, page, PROT_NONE);
    bytes_ = kStack + page;
    bottom_ = static_cast<char*>(memory_) + page;
    prepare();
  }
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() { munmap(memory_, bytes_); }

  bool done() const { return done_; }

  // Runs the fiber until it suspends itself or ends.
  void resume() {
    Fiber* const outer = std::exchange(running_, this);
    before_switch(&outer_fake_, bottom_, kStack);
    switch_in();
    after_switch(outer_fake_, nullptr, nullptr);
    running_ = outer;
  }

  // Back to whoever resumed the fiber that runs.
  static void suspend() {
    Fiber& self = *running_;
    self.before_switch(self.done_ ? nullptr : &self.fake_, self.outer_bottom_, self.outer_size_);
    self.switch_out();
    self.after_switch(self.fake_, &self.outer_bottom_, &self.outer_size_);
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  static void enter() {
    Fiber& self = *running_;
    self.after_switch(nullptr, &self.outer_bottom_, &self.outer_size_);
    self.body_();
    self.done_ = true;
    suspend();
    std::abort();  // nobody resumes a fiber that is done
  }

#if defined(__SANITIZE_ADDRESS__)
  static void before_switch(void** fake, const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(fake, bottom, size);
  }
  static void after_switch(void* fake, const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(fake, bottom, size);
  }
#else
  static void before_switch(void**, const void*, size_t) {}
  static void after_switch(void*, const void**, size_t*) {}
#endif

#if defined(__x86_64__)
  void prepare();
  void switch_in();
  void switch_out();
  void *stack_ = nullptr, *outer_stack_ = nullptr;
#else
  void prepare() {
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom_;
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    makecontext(&context_, &Fiber::enter, 0);
  }
  void switch_in() { swapcontext(&outer_context_, &context_); }
  void switch_out() { swapcontext(&context_, &outer_context_); }
  ucontext_t context_, outer_context_;
#endif

  static inline Fiber* running_ = nullptr;

  std::function<void()> body_;
  bool done_ = false;
  void* memory_ = nullptr;
  size_t bytes_ = 0;
  char* bottom_ = nullptr;
  void *fake_ = nullptr, *outer_fake_ = nullptr;
  const void* outer_bottom_ = nullptr;
  size_t outer_size_ = 0;
};

#if defined(__x86_64__)
// Saves the registers that a call must preserve and the stack pointer to *from, and takes those
// that lie at `to`. System V ABI.
extern "C" void bptt_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.weak bptt_switch_stack
.type bptt_switch_stack, @function
bptt_switch_stack:
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
.size bptt_switch_stack, .-bptt_switch_stack
.popsection
)");

inline void Fiber::prepare() {
  // As if `enter` had been called and had switched away at once: six registers below its address,
  // and the stack pointer off by eight from sixteen when it starts, as after a call.
  auto** top = reinterpret_cast<void**>(bottom_ + kStack);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::enter);
  for (int k = 0; k < 6; ++k) *--top = nullptr;
  stack_ = top;
}
inline void Fiber::switch_in() { bptt_switch_stack(&outer_stack_, stack_); }
inline void Fiber::switch_out() { bptt_switch_stack(&stack_, outer_stack_); }
#endif

}  // namespace bptt::simulator
