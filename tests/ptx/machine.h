// Runs PTX on the CPU, a block after another: each thread up to the next instruction that threads meet at. Every access
// is checked for its bounds and its alignment; what an asynchronous copy brings is there once it has been waited for,
// and NaN before.
#pragma once
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>

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

inline float half_to_float(uint16_t h) { return float(from_bits<_Float16>(h)); }
inline uint16_t float_to_half(float f) { return uint16_t(to_bits(_Float16(f))); }
inline float bfloat_to_float(uint16_t h) { return from_bits<float>(uint64_t(h) << 16); }
inline uint16_t float_to_bfloat(float f) {
  const auto v = uint32_t(to_bits(f));
  return f != f ? 0x7fff : uint16_t((v + 0x7fff + (v >> 16 & 1)) >> 16);
}
inline float round_tf32(float f) {  // to nearest, ties away from zero
  const auto v = uint32_t(to_bits(f));
  return f - f == 0 ? from_bits<float>((v + 0x1000) & 0xffffe000) : f;
}

// Arithmetic

template <class T, class Run>
void binary(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(Run()(get<T>(*t, i.of[0]), get<T>(*t, i.of[1]))));
}
template <class T, class Run>
void unary(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(Run()(get<T>(*t, i.of[0]))));
}
template <class Run>
Step binary_of(Type type) {
  switch (type) {
    case Type::u16:
    case Type::b16:
      return binary<uint16_t, Run>;
    case Type::s16:
      return binary<int16_t, Run>;
    case Type::u32:
    case Type::b32:
      return binary<uint32_t, Run>;
    case Type::s32:
      return binary<int32_t, Run>;
    case Type::u64:
    case Type::b64:
      return binary<uint64_t, Run>;
    case Type::s64:
      return binary<int64_t, Run>;
    case Type::f32:
      return binary<float, Run>;
    case Type::f64:
      return binary<double, Run>;
    case Type::pred:
      return binary<bool, Run>;
    default:
      return nullptr;
  }
}
#define PTX_BINARY(Name, ...)      \
  struct Name {                    \
    template <class T>             \
    T operator()(T a, T b) const { \
      __VA_ARGS__;                 \
    }                              \
  };
PTX_BINARY(Add, return T(a + b))
PTX_BINARY(Sub, return T(a - b))
PTX_BINARY(Mul, return T(a * b))
PTX_BINARY(Div, return T(a / b))
PTX_BINARY(Min, return a != a ? b : b != b || a < b ? a : b)
PTX_BINARY(Max, return a != a ? b : b != b || a > b ? a : b)
PTX_BINARY(CopySign, return T(std::copysign(b, a)))
PTX_BINARY(Rem, if constexpr (std::is_integral_v<T>) return T(a % b); return a)
PTX_BINARY(And, if constexpr (std::is_integral_v<T>) return T(a & b); return a)
PTX_BINARY(Or, if constexpr (std::is_integral_v<T>) return T(a | b); return a)
PTX_BINARY(Xor, if constexpr (std::is_integral_v<T>) return T(a ^ b); return a)
#undef PTX_BINARY

template <class T>
void shift_left(Thread* t, const Instruction& i) {
  const auto by = get<uint32_t>(*t, i.of[1]);
  set<T>(*t, i.to[0], by >= sizeof(T) * 8 ? T(0) : T(get<T>(*t, i.of[0]) << by));
}
template <class T>
void shift_right(Thread* t, const Instruction& i) {
  const uint32_t by = std::min<uint32_t>(get<uint32_t>(*t, i.of[1]), sizeof(T) * 8);
  const T a = get<T>(*t, i.of[0]);
  set<T>(*t, i.to[0], by == sizeof(T) * 8 ? T(a < 0 ? -1 : 0) : T(a >> by));
}
template <class T, class Wide>
void multiply_wide(Thread* t, const Instruction& i) {
  set<Wide>(*t, i.to[0], Wide(get<T>(*t, i.of[0])) * Wide(get<T>(*t, i.of[1])));
}
template <class T>
void multiply_add(Thread* t, const Instruction& i) {
  set<T>(*t, i.to[0], T(get<T>(*t, i.of[0]) * get<T>(*t, i.of[1]) + get<T>(*t, i.of[2])));
}
template <class T>
void fused(Thread* t, const Instruction& i) {
  const volatile T a = get<T>(*t, i.of[0]), b = get<T>(*t, i.of[1]), c = get<T>(*t, i.of[2]);
  set<T>(*t, i.to[0], std::fma(T(a), T(b), T(c)));
}
inline void fused_down(Thread* t, const Instruction& i) {
  std::fesetround(FE_DOWNWARD);
  fused<float>(t, i);
  std::fesetround(FE_TONEAREST);
}
template <class T>
void insert_bits(Thread* t, const Instruction& i) {
  const T a = get<T>(*t, i.of[0]), b = get<T>(*t, i.of[1]);
  const auto at = get<uint32_t>(*t, i.of[2]), count = get<uint32_t>(*t, i.of[3]);
  const T mask = T((count >= sizeof(T) * 8 ? ~T(0) : (T(1) << count) - 1) << at);
  set<T>(*t, i.to[0], T((b & ~mask) | (T(a << at) & mask)));
}
struct Negative {
  template <class T>
  T operator()(T a) const {
    return T(-a);
  }
};
struct Absolute {
  template <class T>
  T operator()(T a) const {
    return std::abs(a);
  }
};
struct Complement {
  template <class T>
  T operator()(T a) const {
    return T(~a);
  }
  bool operator()(bool a) const { return !a; }
};
struct Same {
  bool operator()(bool a) const { return a; }
};
struct Reciprocal {
  template <class T>
  T operator()(T a) const {
    return 1 / a;
  }
};
struct PowerOfTwo {
  float operator()(float a) const { return std::exp2(a); }
};

// Of two 16-bit floats at once; NaN if either is.
template <float (*WIDEN)(uint16_t)>
void max_pairs(Thread* t, const Instruction& i) {
  const auto a = get<uint32_t>(*t, i.of[0]), b = get<uint32_t>(*t, i.of[1]);
  uint32_t all = 0;
  for (int at = 0; at < 32; at += 16) {
    const auto x = uint16_t(a >> at), y = uint16_t(b >> at);
    const float v = WIDEN(x), w = WIDEN(y);
    all |= uint32_t(v != v || w != w ? 0x7fff : v > w ? x : y) << at;
  }
  set<uint32_t>(*t, i.to[0], all);
}

// Comparisons, choices, moves, conversions

template <class T, class Holds>
void set_predicate(Thread* t, const Instruction& i) {
  const T a = get<T>(*t, i.of[0]), b = get<T>(*t, i.of[1]);
  set<bool>(*t, i.to[0], a != a || b != b ? i.unordered : Holds()(a, b));
}
template <class Holds>
Step compare_of(Type type) {
  switch (type) {
    case Type::s16:
    case Type::b16:
      return set_predicate<int16_t, Holds>;
    case Type::u16:
      return set_predicate<uint16_t, Holds>;
    case Type::s32:
    case Type::b32:
      return set_predicate<int32_t, Holds>;
    case Type::u32:
      return set_predicate<uint32_t, Holds>;
    case Type::s64:
      return set_predicate<int64_t, Holds>;
    case Type::u64:
      return set_predicate<uint64_t, Holds>;
    case Type::f32:
      return set_predicate<float, Holds>;
    case Type::f64:
      return set_predicate<double, Holds>;
    default:
      return nullptr;
  }
}

inline uint64_t low(uint64_t value, int bytes) { return bytes == 8 ? value : value & ((uint64_t(1) << bytes * 8) - 1); }

inline void choose(Thread* t, const Instruction& i) {
  t->frame.registers[i.to[0].index] = low(bits(*t, i.of[get<bool>(*t, i.of[2]) ? 0 : 1]), bytes_of(i.type));
}
// Vectors are taken apart, or put together.
inline void move(Thread* t, const Instruction& i) {
  const int bytes = bytes_of(i.type), part = bytes / int(std::max(i.to.size(), i.of.size()));
  uint64_t all = 0;
  for (size_t o = 0; o < i.of.size(); ++o)
    all |= low(bits(*t, i.of[o]), i.of.size() > 1 ? part : bytes) << o * part * 8;
  for (size_t o = 0; o < i.to.size(); ++o)
    t->frame.registers[i.to[o].index] = low(all >> o * part * 8, i.to.size() > 1 ? part : bytes);
}
inline void shared_to_generic(Thread* t, const Instruction& i) {
  set<char*>(*t, i.to[0], t->block->shared + get<uint64_t>(*t, i.of[0]));
}
inline void generic_to_shared(Thread* t, const Instruction& i) {
  set<int64_t>(*t, i.to[0], get<char*>(*t, i.of[0]) - t->block->shared);
}
template <class From, class Into>
void convert(Thread* t, const Instruction& i) {
  set<Into>(*t, i.to[0], Into(get<From>(*t, i.of[0])));
}
template <float (*WIDEN)(uint16_t)>
void widen(Thread* t, const Instruction& i) {
  set<float>(*t, i.to[0], WIDEN(get<uint16_t>(*t, i.of[0])));
}
template <uint16_t (*NARROW)(float)>
void narrow(Thread* t, const Instruction& i) {
  uint32_t all = NARROW(get<float>(*t, i.of.back()));
  if (i.of.size() == 2) all |= uint32_t(NARROW(get<float>(*t, i.of[0]))) << 16;
  set<uint32_t>(*t, i.to[0], all);
}
struct RoundTf32 {
  float operator()(float a) const { return round_tf32(a); }
};
struct Saturate {
  float operator()(float a) const { return a != a ? 0 : std::min(1.0f, std::max(0.0f, a)); }
};
struct Nearest {
  float operator()(float a) const { return std::nearbyint(a); }
};

// Memory

template <bool SHARED>
void load(Thread* t, const Instruction& i) {
  const int bytes = bytes_of(i.type);
  const char* const from = place(*t, i, i.of[0], bytes * i.width, SHARED);
  for (int o = 0; o < i.width; ++o) {
    uint64_t value = 0;
    std::memcpy(&value, from + o * bytes, bytes);
    t->frame.registers[i.to[o].index] = value;
  }
}
template <bool SHARED>
void store(Thread* t, const Instruction& i) {
  const int bytes = bytes_of(i.type);
  char* const to = place(*t, i, i.to[0], bytes * i.width, SHARED);
  for (int o = 0; o < i.width; ++o) {
    const uint64_t value = bits(*t, i.of[o]);
    std::memcpy(to + o * bytes, &value, bytes);
  }
}
inline void start_copy(Thread* t, const Instruction& i) {
  const int bytes = int(i.of[1].value), there = get<int>(*t, i.of[2]);
  char* const to = place(*t, i, i.to[0], bytes, true);
  if (there < 0 || there > bytes) fault(*t, i, "a copy of more bytes than it has");
  const char* const from = there ? place(*t, i, i.of[0], there, false, bytes) : nullptr;
  std::memset(to, 0xff, bytes);
  if (t->copies.empty()) t->copies.emplace_back();
  t->copies.back().push_back({to, from, bytes, there});
}
inline void close_copies(Thread* t, const Instruction&) {
  if (t->copies.empty()) t->copies.emplace_back();
  t->copies.emplace_back();
}
inline void wait_for_copies(Thread* t, const Instruction& i) {
  while (t->copies.size() > size_t(i.to[0].value) + 1) {
    for (const Copy& c : t->copies.front()) {
      std::memcpy(c.to, c.from ? c.from : c.to, c.there);
      std::memset(c.to + c.there, 0, c.bytes - c.there);
    }
    t->copies.erase(t->copies.begin());
  }
}
inline void nothing(Thread*, const Instruction&) {}

// Warps: `t` is the first of 32 threads.

inline void shuffle(Thread* t, const Instruction& i) {
  uint32_t values[32];
  for (int lane = 0; lane < 32; ++lane) values[lane] = get<uint32_t>(t[lane], i.of[0]);
  for (int lane = 0; lane < 32; ++lane) {
    set<uint32_t>(t[lane], i.to[0], values[lane ^ get<uint32_t>(t[lane], i.of[1])]);
    if (i.to.size() > 1) set<bool>(t[lane], i.to[1], true);
  }
}
// Four matrices of 8 x 8 16-bit values, a row from each lane's address.
inline void load_matrices(Thread* t, const Instruction& i) {
  uint16_t rows[32][8];
  for (int lane = 0; lane < 32; ++lane) std::memcpy(rows[lane], place(t[lane], i, i.of[0], 16, true), 16);
  const bool transposed = i.has("trans");
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      uint32_t pair = 0;
      for (int e = 0; e < 2; ++e) {
        const int outer = lane / 4, inner = lane % 4 * 2 + e;
        pair |= uint32_t(transposed ? rows[m * 8 + inner][outer] : rows[m * 8 + outer][inner]) << e * 16;
      }
      set<uint32_t>(t[lane], i.to[m], pair);
    }
}
inline void store_matrices(Thread* t, const Instruction& i) {
  for (int row = 0; row < 32; ++row) {
    char* const to = place(t[row], i, i.to[0], 16, true);
    for (int part = 0; part < 4; ++part) {
      const auto pair = get<uint32_t>(t[row % 8 * 4 + part], i.of[row / 8]);
      std::memcpy(to + part * 4, &pair, 4);
    }
  }
}
// D = A B + C of 16 x 8 results: of 16-bit floats with 16 values of k, of TF32 with 8.
template <float (*WIDEN)(uint16_t)>
void multiply_matrices(Thread* t, const Instruction& i) {
  constexpr bool kPairs = WIDEN != nullptr;
  constexpr int kDepth = kPairs ? 16 : 8;
  float a[16][kDepth], b[kDepth][8], sums[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, in_group = lane % 4;
    const auto value = [&](int operand, int e) {
      const auto v = get<uint32_t>(t[lane], i.of[operand]);
      if constexpr (kPairs)
        return WIDEN(uint16_t(v >> e * 16));
      else
        return from_bits<float>(v & 0xffffe000);
    };
    for (int part = 0; part < 4; ++part)
      for (int e = 0; e < (kPairs ? 2 : 1); ++e)
        a[group + part % 2 * 8][kPairs ? in_group * 2 + e + part / 2 * 8 : in_group + part / 2 * 4] = value(part, e);
    for (int part = 0; part < 2; ++part)
      for (int e = 0; e < (kPairs ? 2 : 1); ++e)
        b[kPairs ? in_group * 2 + e + part * 8 : in_group + part * 4][group] = value(4 + part, e);
    for (int e = 0; e < 4; ++e) sums[group + e / 2 * 8][in_group * 2 + e % 2] = get<float>(t[lane], i.of[6 + e]);
  }
  for (auto row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      double sum = sums[row][column];
      for (int k = 0; k < kDepth; ++k) sum += double(a[row][k]) * b[k][column];
      sums[row][column] = float(sum);
    }
  for (int lane = 0; lane < 32; ++lane)
    for (int e = 0; e < 4; ++e) set<float>(t[lane], i.to[e], sums[lane / 4 + e / 2 * 8][lane % 4 * 2 + e % 2]);
}

inline Step conversion_of(const Instruction& i) {
  using T = Type;
  const auto is = [&](Type into, Type from) { return i.into == into && i.type == from; };
  if (i.has("f16x2") || is(T::f16, T::f32)) return narrow<float_to_half>;
  if (i.has("bf16x2") || is(T::bf16, T::f32)) return narrow<float_to_bfloat>;
  if (is(T::f32, T::f16)) return widen<half_to_float>;
  if (is(T::tf32, T::f32) && i.has("rna")) return unary<float, RoundTf32>;
  if (is(T::f32, T::f32) && i.has("sat")) return unary<float, Saturate>;
  if (is(T::f32, T::f32) && i.has("rni")) return unary<float, Nearest>;
  if (is(T::f32, T::f64)) return convert<double, float>;
  if (is(T::f64, T::f32)) return convert<float, double>;
  if (is(T::u64, T::u32)) return convert<uint32_t, uint64_t>;
  if (is(T::s64, T::s32)) return convert<int32_t, int64_t>;
  if (is(T::u32, T::u64)) return convert<uint64_t, uint32_t>;
  if (is(T::u16, T::u32)) return convert<uint32_t, uint16_t>;
  if (is(T::u32, T::u16)) return convert<uint16_t, uint32_t>;
  return nullptr;
}

inline Step step_of(Instruction& i) {
  const std::string& n = i.name;
  const Type type = i.type;
  const bool wide = i.has("wide"), shared = i.has("shared");
  const auto sized = [&](Step two, Step four, Step eight) {
    return bytes_of(type) == 2 ? two : bytes_of(type) == 4 ? four : eight;
  };
  if (n == "add") return binary_of<Add>(type);
  if (n == "sub") return binary_of<Sub>(type);
  if (n == "mul" && !wide) return binary_of<Mul>(type);
  if (n == "mul" && type == Type::u16) return multiply_wide<uint16_t, uint32_t>;
  if (n == "mul" && type == Type::u32) return multiply_wide<uint32_t, uint64_t>;
  if (n == "mul" && type == Type::s32) return multiply_wide<int32_t, int64_t>;
  if (n == "mad" && !wide) return sized(nullptr, multiply_add<uint32_t>, multiply_add<uint64_t>);
  if (n == "fma" && i.has("rm")) return fused_down;
  if (n == "fma") return type == Type::f64 ? fused<double> : fused<float>;
  if (n == "div") return binary_of<Div>(type);
  if (n == "rem") return binary_of<Rem>(type);
  if (n == "max" && i.has("bf16x2")) return max_pairs<bfloat_to_float>;
  if (n == "max" && i.has("f16x2")) return max_pairs<half_to_float>;
  if (n == "min") return binary_of<Min>(type);
  if (n == "max") return binary_of<Max>(type);
  if (n == "and") return binary_of<And>(type);
  if (n == "or") return binary_of<Or>(type);
  if (n == "xor") return binary_of<Xor>(type);
  if (n == "copysign") return binary_of<CopySign>(type);
  if (n == "shl") return sized(shift_left<uint16_t>, shift_left<uint32_t>, shift_left<uint64_t>);
  if (n == "shr" && (type == Type::s32 || type == Type::s64))
    return sized(nullptr, shift_right<int32_t>, shift_right<int64_t>);
  if (n == "shr") return sized(shift_right<uint16_t>, shift_right<uint32_t>, shift_right<uint64_t>);
  if (n == "bfi") return sized(nullptr, insert_bits<uint32_t>, insert_bits<uint64_t>);
  if (n == "not" && type == Type::pred) return unary<bool, Complement>;
  if (n == "not") return sized(unary<uint16_t, Complement>, unary<uint32_t, Complement>, unary<uint64_t, Complement>);
  if (n == "neg" && type == Type::f32) return unary<float, Negative>;
  if (n == "neg" && type == Type::f64) return unary<double, Negative>;
  if (n == "neg") return sized(unary<int16_t, Negative>, unary<int32_t, Negative>, unary<int64_t, Negative>);
  if (n == "abs") return type == Type::f64 ? unary<double, Absolute> : unary<float, Absolute>;
  if (n == "rcp") return type == Type::f64 ? unary<double, Reciprocal> : unary<float, Reciprocal>;
  if (n == "ex2") return unary<float, PowerOfTwo>;
  if (n == "setp") {
    const std::string& how = i.words[0];
    i.unordered = how.size() == 3;
    const std::string relation = how.substr(0, 2);
    if (relation == "eq") return compare_of<std::equal_to<>>(type);
    if (relation == "ne") return compare_of<std::not_equal_to<>>(type);
    if (relation == "lt") return compare_of<std::less<>>(type);
    if (relation == "le") return compare_of<std::less_equal<>>(type);
    if (relation == "gt") return compare_of<std::greater<>>(type);
    if (relation == "ge") return compare_of<std::greater_equal<>>(type);
  }
  if (n == "selp") return choose;
  if (n == "mov" && type == Type::pred) return unary<bool, Same>;
  if (n == "mov") return move;
  if (n == "cvt") return conversion_of(i);
  if (n == "cvta") return !shared ? move : i.has("to") ? generic_to_shared : shared_to_generic;
  if (n == "ld") return shared ? load<true> : load<false>;
  if (n == "st") return shared ? store<true> : store<false>;
  if (n == "prefetch") return nothing;
  if (n == "cp" && shared) return start_copy;
  if (n == "cp" && i.has("commit_group")) return close_copies;
  if (n == "cp" && i.has("wait_group")) return wait_for_copies;
  if (n == "bar" && i.has("warp")) return i.kind = Kind::warp, nothing;
  if (n == "bar") return i.kind = Kind::barrier, nothing;
  if (n == "shfl" && i.has("bfly")) return i.kind = Kind::warp, shuffle;
  if (n == "ldmatrix" && i.has("x4")) return i.kind = Kind::warp, load_matrices;
  if (n == "stmatrix" && i.has("x4") && !i.has("trans")) return i.kind = Kind::warp, store_matrices;
  if (n == "mma" && i.has("m16n8k16"))
    return i.kind = Kind::warp, i.has("bf16") ? multiply_matrices<bfloat_to_float> : multiply_matrices<half_to_float>;
  if (n == "mma" && i.has("m16n8k8") && i.has("tf32"))
    return i.kind = Kind::warp, static_cast<Step>(multiply_matrices<nullptr>);
  if (n == "bra") return i.kind = Kind::branch, nothing;
  if (n == "call") return i.kind = Kind::call, nothing;
  if (n == "ret") return i.kind = Kind::ret, nothing;
  return nullptr;
}

inline void prepare(Function& f) {
  for (Instruction& i : f.code)
    if (!(i.step = step_of(i))) throw std::runtime_error("PTX that is not known: " + i.text);
}

// Up to an instruction that threads meet at, or to the end.
inline void run(Thread& t) {
  while (!t.done && !t.waits) {
    const Instruction& i = t.frame.function->code[t.frame.at++];
    if (i.guard >= 0 && (t.frame.registers[i.guard] != 0) == i.unless) continue;
    switch (i.kind) {
      case Kind::plain:
        i.step(&t, i);
        break;
      case Kind::branch:
        t.frame.at = i.target;
        break;
      case Kind::warp:
      case Kind::barrier:
        t.waits = &i;
        break;
      case Kind::ret:
        if (t.callers.empty()) {
          t.done = true;
          break;
        }
        t.used = size_t(reinterpret_cast<uint64_t*>(t.frame.params) - t.memory.data());
        if (t.frame.function->returns) {
          const Frame& caller = t.callers.back();
          const Instruction& call = caller.function->code[caller.at - 1];
          const Parameter& p = t.frame.function->result;
          std::memcpy(caller.own + call.to[0].value, t.frame.params + p.offset, p.bytes);
        }
        t.frame = t.callers.back();
        t.callers.pop_back();
        break;
      case Kind::call: {
        const Frame caller = t.frame;
        t.callers.push_back(caller);
        const size_t words = size_t(i.callee->parameter_bytes + 15) / 16 * 2;
        char* const params = reinterpret_cast<char*>(t.memory.data() + t.used);
        t.used += words;
        for (size_t a = 0; a < i.arguments.size(); ++a) {
          const Parameter& p = i.callee->parameters[a];
          std::memcpy(params + p.offset, caller.own + i.arguments[a], p.bytes);
        }
        t.enter(i.callee, params);
        break;
      }
    }
  }
}

// A launch, block after block. Warps take turns from barrier to barrier, the last one first in every other block.
inline void run(const Function& f, unsigned blocks, int threads, size_t shared_bytes, char* params,
                const std::function<bool(const void*, size_t)>& on_device) {
  std::vector<uint64_t> shared(shared_bytes / 8 + 2);
  std::vector<Thread> all(threads);
  for (Thread& t : all) t.memory.resize(kStackWords);
  for (unsigned b = 0; b < blocks; ++b) {
    Block block{reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16),
                shared_bytes,
                params,
                size_t(f.parameter_bytes),
                b,
                blocks,
                on_device};
    std::memset(block.shared, 0xff, shared_bytes);
    for (int index = 0; index < threads; ++index) {
      Thread& t = all[index];
      t.block = &block, t.index = index, t.used = 0, t.done = false, t.waits = nullptr;
      t.callers.clear(), t.copies.clear();
      t.enter(&f, params);
    }
    for (;;) {
      bool moved = false;
      for (int w = 0; w < threads / 32; ++w) {
        Thread* const warp = &all[(b % 2 ? threads / 32 - 1 - w : w) * 32];
        for (;;) {
          for (int lane = 0; lane < 32; ++lane) run(warp[lane]);
          const Instruction* const i = warp[0].waits;
          if (!i || i->kind != Kind::warp) break;
          for (int lane = 1; lane < 32; ++lane)
            if (warp[lane].waits != i) fault(warp[lane], *i, "lanes that do not meet");
          i->step(warp, *i);
          for (int lane = 0; lane < 32; ++lane) warp[lane].waits = nullptr;
          moved = true;
        }
      }
      const auto at_barrier = [](const Thread& t) { return t.waits && t.waits->kind == Kind::barrier; };
      const auto waiting = std::count_if(all.begin(), all.end(), at_barrier);
      const auto done = std::count_if(all.begin(), all.end(), [](const Thread& t) { return t.done; });
      if (done == threads) break;
      if (waiting == threads) {
        for (Thread& t : all) t.waits = nullptr;
      } else if (!moved) {
        for (Thread& t : all)
          if (t.waits) fault(t, *t.waits, "threads that do not meet");
      }
    }
  }
}

}  // namespace ptx
