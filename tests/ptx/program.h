// PTX as instructions that machine.h runs.
#pragma once
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace ptx {

enum class Type : uint8_t {
  none,
  b8,
  b16,
  b32,
  b64,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  bf16,
  tf32,
  f32,
  f64,
  pred
};

inline Type type_of(const std::string& text) {
  static const std::unordered_map<std::string, Type> types = {
      {"b8", Type::b8},   {"b16", Type::b16}, {"b32", Type::b32},   {"b64", Type::b64},   {"u8", Type::u8},
      {"u16", Type::u16}, {"u32", Type::u32}, {"u64", Type::u64},   {"s8", Type::s8},     {"s16", Type::s16},
      {"s32", Type::s32}, {"s64", Type::s64}, {"f16", Type::f16},   {"bf16", Type::bf16}, {"tf32", Type::tf32},
      {"f32", Type::f32}, {"f64", Type::f64}, {"pred", Type::pred},
  };
  const auto found = types.find(text);
  return found == types.end() ? Type::none : found->second;
}

inline int bytes_of(Type type) {
  switch (type) {
    case Type::b8:
    case Type::u8:
    case Type::s8:
      return 1;
    case Type::b16:
    case Type::u16:
    case Type::s16:
    case Type::f16:
    case Type::bf16:
      return 2;
    case Type::b64:
    case Type::u64:
    case Type::s64:
    case Type::f64:
      return 8;
    default:
      return 4;
  }
}

// A register, a number, or an address: `value` bytes behind a register, a frame's own parameters, those it was called
// with, or the beginning of shared memory.
struct Operand {
  enum Kind : uint8_t { number, reg, tid, ctaid, nctaid, frame, params, shared, nothing } kind = nothing;
  uint32_t index = 0;
  int64_t value = 0;
};

struct Function;
struct Thread;
struct Instruction;
using Step = void (*)(Thread* lanes, const Instruction&);  // for a thread, or for the 32 of a warp
enum class Kind : uint8_t { plain, branch, ret, call, warp, barrier };

struct Instruction {
  std::string name;                           // add, ld, ...
  std::vector<std::string> words;             // what follows its points
  Type type = Type::none, into = Type::none;  // the last type of its name; the one before, of a conversion's result
  Kind kind = Kind::plain;
  Step step = nullptr;          // of machine.h
  int guard = -1;               // a register that decides whether it runs
  bool unless = false;          // ... if it is false
  bool unordered = false;       // of a comparison with NaN
  std::vector<Operand> to, of;  // operands; vectors are taken apart
  int width = 1;                // of a vector that is read or written
  int target = -1;              // of a branch
  const Function* callee = nullptr;
  std::vector<int> arguments;  // places in the frame, of what is returned last
  std::string text;

  bool has(const char* word) const {
    for (const std::string& w : words)
      if (w == word) return true;
    return false;
  }
};

struct Parameter {
  int offset = 0, bytes = 0;
};

struct Function {
  std::string name;
  bool entry = false;
  std::vector<Parameter> parameters;  // of an entry from a launch, of others from the caller's frame
  int parameter_bytes = 0, registers = 0, frame_bytes = 0;
  bool returns = false;
  Parameter result;  // behind the parameters
  std::vector<Instruction> code;
};

}  // namespace ptx
