// A thread of a block, its registers, and the memory that it may touch.
#pragma once
#include <cstring>
#include <functional>
#include <stdexcept>

#include "program.h"

namespace ptx {

constexpr size_t kStackWords = 1 << 14;  // of a thread

struct Frame {
  const Function* function;
  int at = 0;
  uint64_t* registers;
  char *own, *params;  // parameters of the functions it calls; its own
};

struct Copy {
  char* to;
  const char* from;
  int bytes, there;
};

struct Block;
struct Thread {
  Block* block = nullptr;
  int index = 0;
  Frame frame{};
  std::vector<Frame> callers;
  std::vector<uint64_t> memory;  // of its frames
  size_t used = 0;
  std::vector<std::vector<Copy>> copies;  // groups; the last one is open
  const Instruction* waits = nullptr;
  bool done = false;

  void enter(const Function* function, char* params) {
    const size_t words = size_t(function->registers) + (function->frame_bytes + 15) / 16 * 2;
    if (used + words > memory.size()) throw std::runtime_error("the stack of a thread is full");
    frame = {function, 0, memory.data() + used, nullptr, params};
    frame.own = reinterpret_cast<char*>(frame.registers + function->registers);
    used += words;
  }
};

struct Block {
  char* shared;
  size_t shared_bytes;
  char* params;
  size_t params_bytes;
  unsigned index, blocks;
  const std::function<bool(const void*, size_t)>& on_device;
};

[[noreturn]] inline void fault(const Thread& t, const Instruction& i, const std::string& why) {
  throw std::runtime_error(why + " by thread " + std::to_string(t.index) + " of block " +
                           std::to_string(t.block->index) + " in " + t.frame.function->name + ": " + i.text);
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T>
uint64_t to_bits(T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

inline uint64_t bits(const Thread& t, const Operand& o) {
  switch (o.kind) {
    case Operand::reg:
      return t.frame.registers[o.index];
    case Operand::tid:
      return uint64_t(t.index);
    case Operand::ctaid:
      return t.block->index;
    case Operand::nctaid:
      return t.block->blocks;
    case Operand::frame:
      return reinterpret_cast<uint64_t>(t.frame.own) + o.value;
    case Operand::params:
      return reinterpret_cast<uint64_t>(t.frame.params) + o.value;
    default:
      return uint64_t(o.value);
  }
}
template <class T>
T get(const Thread& t, const Operand& o) {
  if constexpr (std::is_same_v<T, bool>) return bits(t, o) != 0;  // true is -1 as a number
  return from_bits<T>(bits(t, o));
}
template <class T>
void set(Thread& t, const Operand& o, T value) {
  t.frame.registers[o.index] = to_bits(value);
}

// Where an instruction reads or writes `bytes`, at a multiple of `aligned`.
inline char* place(const Thread& t, const Instruction& i, const Operand& o, int bytes, bool shared, int aligned = 0) {
  const auto inside = [&](const char* at, const char* from, size_t size) {
    return at >= from && at + bytes <= from + size;
  };
  uint64_t at = bits(t, o);
  if (o.kind == Operand::reg) at += o.value;
  if (at % (aligned ? aligned : bytes)) fault(t, i, "misaligned access");
  char* p = reinterpret_cast<char*>(at);
  if (shared) {
    if (at + bytes > t.block->shared_bytes) fault(t, i, "access beyond shared memory");
    return t.block->shared + at;
  }
  if (!inside(p, reinterpret_cast<const char*>(t.memory.data()), t.memory.size() * 8) &&
      !inside(p, t.block->shared, t.block->shared_bytes) && !inside(p, t.block->params, t.block->params_bytes) &&
      !t.block->on_device(p, bytes))
    fault(t, i, "access beyond memory");
  return p;
}

}  // namespace ptx
