// The float and bf16 kernels on the emulator without torch: products and activation gradients with tails on every side,
// operands that end at forbidden pages, outputs that start as NaN. Exits with 1 at a wrong value; test_planted_bugs.py
// compiles it against kernels with one mistake each, and expects anything but 0.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "kernel_compare.h"

namespace {

bool check_distances() {
  Gemm gemms[3];
  bf16 c[4];
  for (int i : {0, 1, 2})
    gemms[i].m = gemms[i].n = axis(1), gemms[i].dtype = DType::bf16, gemms[i].c = rows(c + i + i / 2, 1);
  emulate::Schedule schedule;
  const auto error = [&](int64_t count) { return launch<bf16>(gemms, plan_gemm(gemms, count), schedule, {}); };
  return !error(2) && error(3);
}

// The kernel that gemm_mma is checked against, with small and large tiles and shares.
bool check_fma(emulate::Schedule schedule) {
  const Tuning small{1000, 1000, 0, 1, true}, large{1, 1, 1, 1, true}, split{16, 3, 0, 4, true};
  return check_gemm<float>(70, 67, 90, small, schedule) && check_gemm<float>(130, 129, 50, large, schedule) &&
         check_gemm<float>(65, 10, 130, split, schedule);
}

// Several tiles a block, and shares; then every way operands may lie, in vectors of 2 to 16 bytes, with tails.
bool check_mma(emulate::Schedule schedule) {
  return check_gemm<bf16>(131, 67, 250, {3, 2, 0, 3}, schedule) &&
         check_gemm<float>(70, 130, 120, {1, 1, 0, 1}, schedule) &&
         check_gemm<float>(33, 64, 250, {3, 2, 0, 3}, schedule);
}
bool check_operands() {
  emulate::Schedule schedule;
  for (const auto [a_by_k, b_by_k] : {std::pair(true, false), {true, true}, {false, false}, {false, true}})
    if (!check_gemm<bf16>(70, 136, 96, {1, 1, 0, 1}, schedule, a_by_k, b_by_k) ||
        !check_gemm<float>(34, 70, 44, {1, 1, 0, 1}, schedule, a_by_k, b_by_k) ||
        !check_gemm<bf16>(37, 75, 50, {1, 1, 0, 1}, schedule, a_by_k, b_by_k, 8))
      return false;
  return true;
}

// W in shared memory for as many tiles as a block has, or for one where the next has another.
bool check_weight_stays(emulate::Schedule schedule) {
  want_lean = true;
  Tuning stays{2, 1 << 16, 0, 1};
  stays.stays = 1;
  bool right = true;
  for (stays.tile = 0; stays.tile < 5; stays.tile += schedule.shuffled ? 4 : 1)
    for (stays.max_blocks = 1; stays.max_blocks < 10; stays.max_blocks += 7)
      right = right && check_gemm<bf16>(131, 270, 80, stays, schedule) &&
              check_gemm<bf16>(270, 131, 80, stays, schedule, true, true, 8, Pixels::on_m);
  stays.tile = 2;
  right = right && check_gemm<float>(270, 70, 60, stays, schedule, true, true, 1, Pixels::on_m) &&
          check_gate<bf16>(70, 300, 95, Pixels::on_n, stays, schedule, false, false, 8) &&
          check_gate<bf16>(300, 70, 95, Pixels::on_m, stays, schedule, true, false, 4);
  want_lean = false;
  return right;
}

// The kernel for operands that are read 16 bytes at a time, in every tile and layout, with tails; without and with
// masks, shares and W that stays.
bool check_lean(emulate::Schedule schedule) {
  want_lean = true;
  bool right = true;
  Tuning stays{8, 1 << 16, 0, 1};
  stays.stays = 1;
  for (int tile = 0; tile < 6 && right; tile += schedule.shuffled ? 5 : 1)  // shuffled: the smallest and the largest
    for (const auto [a_by_k, b_by_k] : {std::pair(true, false), {true, true}, {false, false}}) {
      const int64_t m = a_by_k ? 139 : 136, k = 120;  // in two segments, the first with a tail
      stays.tile = tile;
      const Pixels pixels = a_by_k && b_by_k ? Pixels::on_m : Pixels::on_n;
      right =
          right && check_gemm<bf16>(m, 264, k, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, 8, pixels) &&
          check_gemm<bf16>(m, 264, k, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, 8, pixels, /*residual=*/false) &&
          check_gemm<bf16>(m, 72, 240, {3, 2, tile, 3}, schedule, a_by_k, b_by_k, 8, pixels) &&
          check_gemm<bf16>(m, 264, k, stays, schedule, a_by_k, b_by_k, 8, pixels) &&
          check_gemm<float>(a_by_k ? 67 : 68, 76, 108, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, 4, pixels) &&
          check_gemm<float>(a_by_k ? 67 : 68, 76, 36, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, 4, pixels, false) &&
          check_gate<bf16>(m, 72, 88, pixels, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, 8) &&
          check_gate<bf16>(m, 72, 312, Pixels::on_k, {3, 2, tile, 3}, schedule, a_by_k, b_by_k, 8) &&
          check_gate<float>(a_by_k ? 67 : 68, 76, 120, Pixels::on_k, {3, 2, tile, 2}, schedule, a_by_k, b_by_k, 4);
    }
  want_lean = false;
  return right;
}

// gemm_lean where operands lie at 8, 4 and 2 bytes, or each element by itself, with tails inside of vectors.
bool check_narrow(emulate::Schedule schedule) {
  want_lean = true;
  bool right = true;
  for (const int64_t pitch : {4, 2, 1})
    for (const auto [a_by_k, b_by_k] : {std::pair(true, false), {true, true}, {false, false}, {false, true}}) {
      const Pixels pixels = b_by_k ? Pixels::on_m : Pixels::on_n;
      const int tile = pitch == 2 ? 5 : 3;
      right = right && check_gemm<bf16>(67, 131, 75, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, pitch, pixels) &&
              check_gemm<bf16>(67, 131, 150, {3, 2, tile, 3}, schedule, a_by_k, b_by_k, pitch, pixels, false) &&
              check_gemm<float>(67, 75, 37, {3, 2, 0, 1}, schedule, a_by_k, b_by_k, pitch, pixels) &&
              check_gate<bf16>(67, 75, 90, pixels, {3, 2, tile, 1}, schedule, a_by_k, b_by_k, pitch) &&
              check_gate<bf16>(67, 75, 211, Pixels::on_k, {3, 2, tile, 3}, schedule, a_by_k, b_by_k, pitch);
    }
  want_lean = false;
  return right;
}

// No block of this size asks for more shared memory than the plan takes into account.
template <class T, bool A_ALONG_K, bool B_ALONG_K, int WARPS_M, int WARPS_N, int WARP_M>
bool check_shared_bytes() {
  using Traits = MmaTraits<T, false, A_ALONG_K, B_ALONG_K, WARPS_M, WARPS_N, WARP_M>;
  uint32_t there;
  Gemm plain, masked;
  masked.gate.mask.words = &there;
  for (Gemm* g : {&plain, &masked})
    for (int steps : {0, 1, 9})
      for (Pixels pixels : {Pixels::on_m, Pixels::on_n}) {
        GemmPlan p;
        p.steps = steps, p.weight_blocks = steps > 0, p.tiles_m = p.tiles_n = 1, g->pixels = pixels;
        const Tile tile{Traits::kTileM, Traits::kTileN, Traits::kBlocks};
        LeanLaunch lean = lean_launch(*g, p, {}, nullptr);
        if (int64_t(LeanShared<LeanTraits<Traits, true>>::place(lean)) > shared_bytes(*g, true, tile, steps))
          return false;
        if (tile.m == 64 && tile.n == 64 &&
            int64_t(sizeof(typename GemmMma<Traits>::Shared)) > shared_bytes(*g, false, tile))
          return false;
      }
  return true;
}
template <class T, bool A_ALONG_K, bool B_ALONG_K>
bool check_shared_bytes() {
  return check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 2, 2, 32>() &&
         check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 1, 4, 32>() &&
         check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 4, 1, 32>() &&
         check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 2, 4, 32>() &&
         check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 4, 2, 32>() &&
         check_shared_bytes<T, A_ALONG_K, B_ALONG_K, 2, 4, 64>();
}
template <class T>
bool check_shared_bytes() {
  return check_shared_bytes<T, true, true>() && check_shared_bytes<T, true, false>() &&
         check_shared_bytes<T, false, false>();
}

// A GPU with less shared memory computes the same plan, without W in it.
bool check_fitted() {
  Gemm g;
  g.dtype = DType::bf16, g.pixels = Pixels::on_m, g.m = axis(1 << 20), g.n = axis(128);
  g.segments = 1, g.segment[0].k = axis(256);
  g.segment[0].a = rows(nullptr, 256), g.segment[0].b = columns(nullptr, 256), g.c = rows(nullptr, 128);
  Tuning stays;
  stays.stays = 1;
  const GemmPlan plan = plan_gemm(&g, 1, stays), large = fitted(plan, g, 227 << 10), small = fitted(plan, g, 99 << 10);
  return plan.weight_stays() && large.weight_blocks == plan.weight_blocks && !small.weight_stays() &&
         small.work() == plan.work() && small.tile == plan.tile;
}

}  // namespace

// Divisions and nested dimensions, also beyond what 32 bits hold.
bool check_offsets() {
  uint64_t state = 1;
  const auto random = [&](int bits) {  // an xorshift generator
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return int64_t(state >> (64 - bits));
  };
  for (int bits = 1; bits < 64; ++bits)
    for (int of = 1; of < 64; ++of)
      for (int i = 0; i < 20; ++i) {
        const int64_t a = random(bits), b = random(of) | 1;
        if (divide(a, b) == a / b) continue;
        std::printf("divide: %ld / %ld is %ld\n", long(a), long(b), long(divide(a, b)));
        return false;
      }
  for (int bits : {2, 8, 11, 15})
    for (int i = 0; i < 500; ++i) {
      Axis axis{{random(bits) + 1, random(bits) + 1, i % 3 ? random(bits) + 1 : 1, i % 2 ? random(bits) + 1 : 1}};
      const Steps steps{{random(20), random(20), random(20), random(20)}};
      const int64_t index = random(62) % axis.count();
      if (offset_at(axis, steps, index) == offset(axis, steps, index)) continue;
      std::printf("offset_at(%ld) is %ld\n", long(index), long(offset_at(axis, steps, index)));
      return false;
    }
  return true;
}

// With a name, that check first: what is wrong with one kernel is found before all others are checked.
int main(int count, char** arguments) {
  using Check = std::function<bool(emulate::Schedule)>;
  std::vector<std::pair<std::string, Check>> checks{
      {"fma", check_fma},
      {"mma", check_mma},
      {"weight", check_weight_stays},
      {"lean", check_lean},
      {"narrow", check_narrow},
      {"groups", [](emulate::Schedule s) { return check_groups(s, 72, 88, 96, 1) && check_groups(s, 35, 49, 300, 2); }},
      {"images", [](emulate::Schedule s) { return check_images(s, 3) && check_images(s, 38, 800); }},
      {"odd images", [](emulate::Schedule s) { return check_images(s, 3, 49) && check_images(s, 2, 196); }},
      {"grad", [](emulate::Schedule s) { return check_activation_grad(200, 40, {8, 3}, s); }}};
  const std::string wanted = count > 1 ? arguments[1] : "";
  std::stable_partition(checks.begin(), checks.end(), [&](const auto& check) { return check.first == wanted; });
  if (!wanted.empty() && checks.front().first != wanted) return std::printf("no check %s\n", wanted.c_str()), 2;
  if (!check_offsets()) return 1;
  for (const auto& schedule : {emulate::Schedule{}, emulate::Schedule{true, 1}, emulate::Schedule{true, 2}})
    for (const auto& [name, check] : checks)
      if (!check(schedule)) return 1;
  if (!check_operands()) return 1;
  if (!check_shared_bytes<bf16>() || !check_shared_bytes<float>())
    return std::printf("a block asks for more shared memory than was counted\n"), 1;
  if (!check_fitted()) return std::printf("a plan does not fit a GPU with less shared memory\n"), 1;
  if (!check_distances()) return std::printf("unequal distances between products are not refused\n"), 1;
  return 0;
}
