#include "team.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "gru.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace tidegate {

void Barrier::give_way() { std::this_thread::yield(); }

namespace {

using Work = void (*)(void*, int, int);

// Our own workers. They sleep between calls: a worker that spun on would take the core from whoever comes next.
class Pool {
 public:
  // False where another call has the workers: then the caller does the work alone, with the same bits.
  bool run(int threads, Work work, void* context) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return false;
    try {
      while (static_cast<int>(workers_.size()) < threads - 1) {
        const int member = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, member] { serve(member); });
      }
    } catch (...) {  // no more threads to be had: go on with those that are there
      threads = static_cast<int>(workers_.size()) + 1;
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = work, context_ = context, members_ = threads, running_ = threads - 1;
      ++call_;
    }
    wake_.notify_all();
    work(context, 0, threads);
    for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
      if (spins < 4000) relax();
      else std::this_thread::yield();
    }
    return true;
  }

 private:
  void serve(int member) {
    uint64_t seen = 0;
    for (;;) {
      Work work;
      void* context;
      int members;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return call_ != seen; });
        seen = call_, work = work_, context = context_, members = members_;
      }
      if (member >= members) continue;
      work(context, member, members);
      running_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int members_ = 0;
  uint64_t call_ = 0;
  std::atomic<int> running_{0};
};

// The pool lives as long as the process: its threads may not be joined while others unload. After fork the child has
// none of the threads and perhaps a held lock, so it leaves the old pool where it is and begins a new one.
std::atomic<Pool*> pool{nullptr};
std::atomic<bool> forked{false};
thread_local bool inside = false;  // a call from inside a team runs alone

OmpParallel omp_parallel = nullptr;
OmpNumber omp_num_threads = nullptr;
OmpNumber omp_thread_num = nullptr;

Pool& own_pool() {
  Pool* found = pool.load(std::memory_order_acquire);
  if (found == nullptr) {
    auto fresh = std::make_unique<Pool>();
    if (pool.compare_exchange_strong(found, fresh.get(), std::memory_order_acq_rel)) found = fresh.release();
  }
  return *found;
}

#if defined(__unix__) || defined(__APPLE__)
const int at_fork = pthread_atfork(nullptr, nullptr, [] {
  pool.store(nullptr, std::memory_order_release);
  forked.store(true, std::memory_order_release);
});
#endif

// How a thread computes: rounding, and whether numbers below the smallest normal one become 0 (torch.set_flush_denormal).
// A mode is a thread's own, so a team takes over that of the thread that called it, for as long as it works.
class Mode {
 public:
#if defined(__SSE__)
  static uint64_t now() { return _mm_getcsr() & ~flags; }
  static void set(uint64_t mode) { _mm_setcsr((_mm_getcsr() & flags) | static_cast<unsigned>(mode)); }

 private:
  static constexpr unsigned flags = 0x3f;  // what happened so far: no part of the mode
#elif defined(__aarch64__)
  static uint64_t now() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
  static uint64_t now() { return 0; }
  static void set(uint64_t) {}
#endif
};

struct CallInMode {
  Work work;
  void* context;
  uint64_t mode;
};

void member_in_mode(void* call, int member, int members) {
  const auto& c = *static_cast<CallInMode*>(call);
  const uint64_t own = Mode::now();
  if (own != c.mode) Mode::set(c.mode);
  c.work(c.context, member, members);
  if (own != c.mode) Mode::set(own);
}

struct OmpCall {
  Work work;
  void* context;
  int threads;
};

void omp_member(void* call) {
  const auto& c = *static_cast<OmpCall*>(call);
  const int there = omp_num_threads(), members = there < c.threads ? there : c.threads;
  if (omp_thread_num() < members) c.work(c.context, omp_thread_num(), members);
}

}  // namespace

void use_openmp(OmpParallel parallel, OmpNumber num_threads, OmpNumber thread_num) {
  omp_parallel = parallel, omp_num_threads = num_threads, omp_thread_num = thread_num;
}

void run_team(int threads, Work work, void* context) {
  if (threads <= 1 || inside) return work(context, 0, 1);
  struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
  } now;
  CallInMode call_in_mode{work, context, Mode::now()};
  work = member_in_mode, context = &call_in_mode;
  // An OpenMP runtime that was used before a fork hangs in the child; our own pool does not.
  if (omp_parallel != nullptr && !forked.load(std::memory_order_acquire)) {
    OmpCall call{work, context, threads};
    // 0: as many as the runtime has, and those beyond `threads` go home at once. A team of another size than the last
    // one would make GNU's runtime end threads and start new ones.
    omp_parallel(omp_member, &call, 0, 0);
  } else if (!own_pool().run(threads, work, context)) {
    work(context, 0, 1);
  }
}

}  // namespace tidegate
