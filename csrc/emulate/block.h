// The host twin of a CUDA grid: blocks run one after another, the threads of a block as fibers.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "async_copy.h"
#include "fiber.h"
#include "poison.h"

namespace pw::emulate {

constexpr int kWarp = 32;
constexpr int kExchange = 32;  // bytes that a lane hands over at most

// Which warp runs next. In order, or a random one that may run far ahead: as far as barriers let it.
struct Schedule {
  bool shuffled = false;
  uint32_t seed = 0;
};

class Grid {
 public:
  // The grid whose kernel is running.
  static Grid& current() {
    if (!current_) throw std::logic_error("emulator: no kernel is running");
    return *current_;
  }

  // Runs `kernel` once per thread of `blocks` blocks.
  static void run(int64_t blocks, int threads, size_t shared_bytes, const Schedule& schedule,
                  const std::function<void()>& kernel) {
    Grid grid(blocks, threads, shared_bytes, schedule);
    current_ = &grid;
    try {
      for (grid.block_ = 0; grid.block_ < blocks; ++grid.block_) grid.run_block(kernel);
    } catch (...) {
      current_ = nullptr;
      throw;
    }
    current_ = nullptr;
  }

  int thread() const { return thread_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return blocks_; }
  AsyncCopies& copies() { return threads_[thread_].copies; }

  // The block's shared memory; a kernel that asks for more than its launch did is stopped.
  void* shared(size_t bytes) {
    if (bytes > shared_bytes_)
      throw std::runtime_error("emulator: the kernel uses " + std::to_string(bytes) +
                               " bytes of shared memory, its launch asked for " + std::to_string(shared_bytes_));
    return shared_;
  }

  // Hands `mine` to the other lanes of the warp and returns what all of them handed over, `kExchange` bytes apart, once
  // every lane has arrived at this line. Two buffers take turns, so that no lane overwrites what another still reads.
  const char* exchange(const void* mine, size_t bytes, int line) {
    Thread& self = threads_[thread_];
    const int first = thread_ / kWarp * kWarp;
    Warp& warp = warps_[thread_ / kWarp];
    auto& buffer = warp.buffer[self.exchanges++ % 2];
    memcpy(buffer[thread_ % kWarp], mine, bytes);
    self.line = line;
    if (++warp.arrived < kWarp) {
      self.waiting = true;
      self.fiber.suspend();
      return buffer[0];
    }
    for (int t = first; t < first + kWarp; ++t)
      if (threads_[t].line != line)
        throw std::runtime_error("emulator: warp divergence, thread " + std::to_string(t) + " is at line " +
                                 std::to_string(threads_[t].line) + ", thread " + std::to_string(thread_) +
                                 " at line " + std::to_string(line));
    warp.arrived = 0;
    for (int t = first; t < first + kWarp; ++t) threads_[t].waiting = false, threads_[t].line = 0;
    return buffer[0];
  }

  // Waits until every thread of the block has arrived at this line.
  void barrier(int line) {
    Thread& self = threads_[thread_];
    self.line = line;
    if (++arrived_ < int(threads_.size())) {
      self.waiting = true;
      self.fiber.suspend();
      return;
    }
    for (size_t t = 0; t < threads_.size(); ++t)
      if (threads_[t].line != line)
        throw std::runtime_error("emulator: barrier divergence, thread " + std::to_string(t) + " waits at line " +
                                 std::to_string(threads_[t].line) + ", thread " + std::to_string(thread_) +
                                 " at line " + std::to_string(line));
    arrived_ = 0;
    for (Thread& t : threads_) t.waiting = false, t.line = 0;
  }

 private:
  struct Thread {
    Fiber fiber;
    AsyncCopies copies;
    bool waiting = false;
    int line = 0;       // of the barrier or exchange that it waits at
    int exchanges = 0;  // it has taken part in
  };
  struct Warp {
    alignas(8) char buffer[2][kWarp][kExchange];
    int arrived = 0;
  };

  Grid(int64_t blocks, int threads, size_t shared_bytes, const Schedule& schedule)
      : blocks_(blocks),
        threads_(threads),
        warps_((threads + kWarp - 1) / kWarp),
        shared_bytes_(shared_bytes),
        memory_(new char[shared_bytes + kAlign]),
        shared_(memory_.get()),
        schedule_(schedule),
        random_(schedule.seed) {
    // Placed at the end of the allocation, so that the address sanitizer sees what runs over it.
    const auto end = reinterpret_cast<uintptr_t>(memory_.get()) + shared_bytes + kAlign;
    shared_ += (end - shared_bytes) / kAlign * kAlign - reinterpret_cast<uintptr_t>(memory_.get());
  }

  void run_block(const std::function<void()>& kernel) {
    poison(shared_, shared_bytes_);
    arrived_ = 0;
    for (Thread& t : threads_) t.waiting = false, t.line = 0, t.exchanges = 0, t.copies.clear(), t.fiber.start(kernel);
    for (Warp& w : warps_) w.arrived = 0;
    const int warps = (int(threads_.size()) + kWarp - 1) / kWarp;
    for (int alive = int(threads_.size()); alive > 0;) {
      bool progress = false;
      const int first = schedule_.shuffled ? int(random_() % warps) : 0;
      for (int i = 0; i < warps; ++i) {
        const int warp = (first + i) % warps;
        progress |= run_warp(warp, alive);
        if (!schedule_.shuffled || !progress) continue;
        // It runs alone, every second time to the next barrier: the others stay where they are.
        for (int more = random_() % 2 ? kFar : int(random_() % 8); more > 0 && run_warp(warp, alive); --more) continue;
        break;
      }
      if (!progress) throw std::runtime_error(deadlock());
    }
  }

  bool run_warp(int warp, int& alive) {
    bool progress = false;
    for (int lane = 0; lane < kWarp && warp * kWarp + lane < int(threads_.size()); ++lane) {
      thread_ = warp * kWarp + lane;
      Thread& t = threads_[thread_];
      if (t.waiting || t.fiber.done()) continue;
      t.fiber.resume();
      progress = true;
      alive -= t.fiber.done();
    }
    return progress;
  }

  std::string deadlock() const {
    std::string text = "emulator: deadlock in block " + std::to_string(block_) + ",";
    for (size_t t = 0; t < threads_.size(); ++t)
      if (threads_[t].waiting)
        return text + " thread " + std::to_string(t) + " waits at the barrier of line " +
               std::to_string(threads_[t].line) + ", only " + std::to_string(arrived_) + " of " +
               std::to_string(threads_.size()) + " threads arrived and the others have left the kernel";
    return text + " no thread can go on";
  }

  static constexpr size_t kAlign = 128;
  static constexpr int kFar = 1 << 30;
  static inline thread_local Grid* current_ = nullptr;

  int64_t blocks_, block_ = 0;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  size_t shared_bytes_;
  std::unique_ptr<char[]> memory_;
  char* shared_;
  Schedule schedule_;
  std::mt19937 random_;
  int thread_ = 0;   // the one that runs
  int arrived_ = 0;  // at the barrier
};

}  // namespace pw::emulate
