// Runs PTX on the CPU, a block after another: each thread up to the next instruction that threads meet at.
#pragma once
#include <algorithm>

#include "instructions.h"

namespace ptx {

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
