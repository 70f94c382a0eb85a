// A fiber: a function with a stack of its own, entered and left at will. One runs each CUDA thread of an emulated
// block.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <exception>
#include <functional>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace pw::emulate {

// The address sanitizer has to know which stack is current.
inline void before_switch(void** keep, const void* stack, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(keep, stack, size);
#endif
}
inline void after_switch(void* keep, const void** stack, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(keep, stack, size);
#endif
}

class Fiber {
 public:
  static constexpr size_t kStack = 256 << 10;  // the sanitizers' frames are large

  Fiber() : stack_(new char[kStack]) {}
  Fiber(const Fiber&) = delete;

  // Starts over with this body at the next resume().
  void start(std::function<void()> body) {
    body_ = std::move(body);
    error_ = nullptr;
    done_ = started_ = false;
    fake_stack_ = nullptr;
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack_.get();
    context_.uc_stack.ss_size = kStack;
    context_.uc_link = nullptr;
    const auto self = reinterpret_cast<uintptr_t>(this);
    makecontext(&context_, reinterpret_cast<void (*)()>(&Fiber::entry), 2, unsigned(self >> 32), unsigned(self));
  }

  // Runs the body until it suspends or returns; an exception that leaves the body continues here.
  void resume() {
    void* fake_stack = nullptr;
    before_switch(&fake_stack, stack_.get(), kStack);
    if (_setjmp(caller_) == 0) {  // unlike swapcontext, no system call
      if (!started_) started_ = true, setcontext(&context_);
      _longjmp(here_, 1);
    }
    after_switch(fake_stack, nullptr, nullptr);
    if (error_) std::rethrow_exception(error_);
  }

  // Called inside the body: returns to where resume() was called.
  void suspend() {
    before_switch(&fake_stack_, caller_stack_, caller_size_);
    if (_setjmp(here_) == 0) _longjmp(caller_, 1);
    after_switch(fake_stack_, &caller_stack_, &caller_size_);
  }

  bool done() const { return done_; }

 private:
  static void entry(unsigned high, unsigned low) {
    Fiber* self = reinterpret_cast<Fiber*>(uintptr_t(high) << 32 | low);
    after_switch(nullptr, &self->caller_stack_, &self->caller_size_);
    try {
      self->body_();
    } catch (...) {
      self->error_ = std::current_exception();
    }
    self->done_ = true;
    before_switch(nullptr, self->caller_stack_, self->caller_size_);  // null: this stack is given up
    _longjmp(self->caller_, 1);
  }

  std::unique_ptr<char[]> stack_;
  ucontext_t context_;  // where the body starts
  jmp_buf caller_, here_;
  bool started_ = false;
  std::function<void()> body_;
  std::exception_ptr error_;
  bool done_ = true;
  void* fake_stack_ = nullptr;
  const void* caller_stack_ = nullptr;
  size_t caller_size_ = 0;
};

}  // namespace pw::emulate
