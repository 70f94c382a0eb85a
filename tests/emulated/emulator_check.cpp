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
    copy_async(&mine, source + t, t != 5);
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
  const auto misaligned = [&] { copy_async(&shared_memory<Pair>(), reinterpret_cast<const Pair*>(source + 1), true); };
  expect(mentions(run(misaligned), "multiples"), "a copy of 8 bytes needs addresses that are multiples of 8");
}

}  // namespace

int main() {
  barriers();
  schedules();
  shared();
  copies();
  return failures != 0;
}
