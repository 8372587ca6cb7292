// Threads that work on one call together.

#pragma once

#include <atomic>
#include <cstdint>

namespace tidegate {

// Inlined always: this header is compiled for every instruction set, and a shared copy could be the wrong one's.
[[gnu::always_inline]] inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// All members of a group wait for each other, many times over. Spins, as its members run at the same time and
// meet every few microseconds; yields the core after a while, as there may be fewer cores than threads.
class Barrier {
 public:
  [[gnu::always_inline]] void wait(int members) {
    if (members <= 1) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < 4000) relax();
      else give_way();
    }
  }

 private:
  static void give_way();
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// Run work(context, member, members) on `members` threads at the same time, the calling one among them, and return
// when all are done. `members` is at most `threads`; less where the threads are not to be had. Safe to call from many
// threads at once, and in a child process after fork.
void run_team(int threads, void (*work)(void* context, int member, int members), void* context);

}  // namespace tidegate
