// The emulator's own promises, each with a kernel of a few lines. Prints what does not hold and exits with 1.
#include <cmath>
#include <cstdio>

#include "cuda/intrin.cuh"

namespace {

using namespace pw;

constexpr int kThreads = 64;
int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("does not hold: %s\n", what), ++failures;
}

struct Row {
  float value[kThreads];
};

// Runs a kernel in one block; returns the emulator's complaint, or "".
template <class Kernel>
std::string run(Kernel kernel, emulate::Schedule schedule = {}, size_t bytes = sizeof(Row)) {
  try {
    emulate::Grid::run(1, kThreads, bytes, schedule, kernel);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

void barriers() {
  float out[kThreads];
  const auto reverse = [&] {
    shared_memory<Row>().value[thread_index()] = float(thread_index());
    sync_threads();
    out[thread_index()] = shared_memory<Row>().value[kThreads - 1 - thread_index()];
  };
  for (const emulate::Schedule s : {emulate::Schedule{}, emulate::Schedule{true, 3}}) {
    expect(run(reverse, s).empty(), "a barrier that all threads reach passes");
    expect(out[0] == kThreads - 1 && out[kThreads - 1] == 0, "what was written before a barrier is read after it");
  }
  expect(mentions(run([] {
                    if (thread_index() < 32) sync_threads();
                  }),
                  "deadlock"),
         "a barrier that some threads never reach is a deadlock");
  const auto diverge = [] {
    if (thread_index() % 2)
      sync_threads();
    else
      sync_threads();
  };
  expect(mentions(run(diverge), "barrier divergence"), "threads at different barriers have diverged");
}

void schedules() {
  const auto order = [](emulate::Schedule schedule) {
    std::string text;
    const auto kernel = [&] {
      if (thread_index() % 32 == 0) text += char('0' + thread_index() / 32);
    };
    for (int i = 0; i < 8; ++i) schedule.seed += i, run(kernel, schedule);
    return text;
  };
  expect(order({}) == "0101010101010101", "warps run in order");
  expect(order({true, 1}) != order({}), "shuffled warps do not");
  expect(order({true, 1}) == order({true, 1}), "the same seed gives the same order");
}

void shared() {
  bool poison = true;
  expect(run([&] { poison &= std::isnan(shared_memory<Row>().value[thread_index()]); }).empty() && poison,
         "shared memory starts as NaN");
  expect(mentions(run([] { shared_memory<Row>(); }, {}, sizeof(Row) - 1), "shared memory"),
         "a kernel gets no more shared memory than its launch asked for");
}

void copies() {
  alignas(16) float source[kThreads + 1], before[kThreads], after[kThreads];
  for (int i = 0; i < kThreads; ++i) source[i] = float(i);
  const auto kernel = [&] {
    const int t = thread_index();
    float& mine = shared_memory<Row>().value[t];
    copy_async<4>(&mine, source + t, t == 5 ? 0 : 4);
    copy_async_commit();
    copy_async_wait<1>();
    before[t] = mine;
    copy_async_wait<0>();
    after[t] = mine;
  };
  expect(run(kernel).empty(), "copies run");
  expect(std::isnan(before[7]), "a copy has not arrived before it is waited for");
  expect(after[7] == 7 && after[5] == 0, "it has arrived after that, as zero where the source lies outside");
  struct alignas(4) Pair {
    float value[2];
  };
  const auto misaligned = [&] { copy_async<8>(&shared_memory<Pair>(), source + 1, 8); };
  expect(mentions(run(misaligned), "multiples"), "a copy of 8 bytes needs addresses that are multiples of 8");
}

void matrices() {
  struct alignas(16) Rows {
    uint16_t v[4][8][8];
  } rows;
  for (int j = 0; j < 4; ++j)
    for (int r = 0; r < 8; ++r)
      for (int c = 0; c < 8; ++c) rows.v[j][r][c] = uint16_t(64 * j + 8 * r + c);
  uint32_t plain[kThreads][4], turned[kThreads][4];
  const auto load = [&] {
    const int t = thread_index(), lane = t % 32;
    load_matrices<false>(plain[t], rows.v[lane / 8][lane % 8]);
    load_matrices<true>(turned[t], rows.v[lane / 8][lane % 8]);
  };
  for (const emulate::Schedule s : {emulate::Schedule{}, emulate::Schedule{true, 5}}) {
    expect(run(load, s).empty(), "matrices are loaded");
    const int lane = 32 + 13, row = 13 / 4, column = 13 % 4 * 2;  // of the second warp
    expect(plain[lane][2] == uint32_t(128 + 8 * row + column + ((128 + 8 * row + column + 1) << 16)),
           "a lane receives two neighbours of its row");
    expect(turned[lane][2] == uint32_t(128 + 8 * column + row + ((128 + 8 * (column + 1) + row) << 16)),
           "and of its column where transposed");
  }
  expect(mentions(run([&] {
                    uint32_t to[4];
                    load_matrices<false>(to, &rows.v[0][0][1]);
                  }),
                  "16 bytes"),
         "a row of a matrix has to be aligned");
  expect(mentions(run([&] {
                    uint32_t to[4];
                    if (thread_index() % 2)
                      load_matrices<false>(to, rows.v);
                    else
                      load_matrices<false>(to, rows.v);
                  }),
                  "warp divergence"),
         "lanes at different matrix instructions have diverged");
}

void products() {
  float d[kThreads][4];
  const auto identity = [&](int row, int column) { return row == column ? 1.0f : 0.0f; };
  const auto b_value = [](int k, int n) { return float(8 * k + n); };
  const auto bits = [](float low, float high) {
    return uint32_t(narrow<bf16>(low).bits) | uint32_t(narrow<bf16>(high).bits) << 16;
  };
  const auto kernel = [&] {
    const int lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    uint32_t a[4], b[2];
    for (int i = 0; i < 4; ++i) {
      const int row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
      a[i] = bits(identity(row, k), identity(row, k + 1));
    }
    for (int i = 0; i < 2; ++i) b[i] = bits(b_value(2 * t + 8 * i, g), b_value(2 * t + 1 + 8 * i, g));
    for (float& v : d[thread_index()]) v = 1000;
    multiply_16x8x16<bf16>(d[thread_index()], a, b);
  };
  expect(run(kernel).empty(), "matrices are multiplied");
  bool right = true;
  for (int t = 0; t < kThreads; ++t)
    for (int i = 0; i < 4; ++i) right &= d[t][i] == 1000 + b_value(t % 32 / 4 + i / 2 * 8, t % 4 * 2 + i % 2);
  expect(right, "D = D + I B");
  expect(bit_cast<float>(round_tf32(1 + 0x1p-11f)) == 1 + 0x1p-10f, "ties are rounded away from zero");
  expect(bit_cast<float>(round_tf32(1 + 0x1p-12f)) == 1, "10 bits of fraction are left");
}

}  // namespace

int main() {
  barriers();
  schedules();
  shared();
  copies();
  matrices();
  products();
  return failures != 0;
}
