// Comparisons, choices, moves and conversions.
#pragma once
#include <algorithm>
#include <cmath>

#include "thread.h"

namespace ptx {

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

}  // namespace ptx
