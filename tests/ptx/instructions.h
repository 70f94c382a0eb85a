// Which function runs an instruction.
#pragma once
#include "arithmetic.h"
#include "memory.h"
#include "warp.h"

namespace ptx {

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

}  // namespace ptx
