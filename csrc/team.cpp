#include "team.h"

#include <chrono>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "gru.h"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <condition_variable>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace tidegate {
namespace {

using Clock = std::chrono::steady_clock;

int64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now().time_since_epoch()).count();
}

// Sleep while `word` has this value, or less long; and end that sleep.
#if defined(__linux__)
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}
#else
struct Beds {
  std::mutex mutex;
  std::condition_variable woken;
};
std::atomic<Beds*> beds{new Beds};  // never freed; another one after fork, as somebody could hold the lock
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) {
  Beds& b = *beds.load();
  std::unique_lock<std::mutex> lock(b.mutex);
  if (word.load(std::memory_order_seq_cst) == value) b.woken.wait(lock);
}
void wake_all(std::atomic<uint32_t>&) {
  Beds& b = *beds.load();
  std::lock_guard<std::mutex> lock(b.mutex);
  b.woken.notify_all();
}
#endif

// Threads that have their cores meet within some microseconds. One that waits longer goes to sleep.
constexpr int64_t spin_us = 50;

template <class Condition>
bool spin_until(const Condition& condition) {
  const int64_t end = now_us() + spin_us;
  do {
    for (int spins = 0; spins < 20; ++spins) {
      if (condition()) return true;
      relax();
    }
  } while (now_us() < end);
  return condition();
}

// Whether other programs want the cores as well: for some time after a thread has been waited for so long that it cannot have
// had one. Twice as long each time that it shows again soon.
constexpr int64_t lost_core_us = 700, busy_us = 100000, busy_most_us = 1600000;
std::atomic<int64_t> busy_until{0}, busy_for{busy_us};

bool busy() {
  const int64_t until = busy_until.load(std::memory_order_relaxed);
  return until != 0 && now_us() < until;
}

void waited(int64_t us) {
  if (us < lost_core_us) return;
  const int64_t now = now_us(), until = busy_until.load(std::memory_order_relaxed);
  if (now < until) return;
  int64_t length = busy_us;
  if (now - until < busy_most_us && until != 0) {
    length = 2 * busy_for.load(std::memory_order_relaxed);
    if (length > busy_most_us) length = busy_most_us;
  }
  busy_for.store(length, std::memory_order_relaxed);
  busy_until.store(now + length, std::memory_order_relaxed);
}

// Our own workers. They sleep between calls: a worker that spun on would take the core from whoever comes next.
class Pool {
 public:
  // False where another call has the workers: then the caller does the work alone, with the same bits.
  bool run(int threads, Work work, void* context) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return false;
    try {
      while (static_cast<int>(workers_.size()) < threads - 1) {
        const int place = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, place] { serve(place); });
      }
    } catch (const std::system_error&) {  // no more threads to be had: go on with those that are there
    }
    work_ = work, context_ = context, threads_ = threads;
    guests_.store(open, std::memory_order_release);
    ring();
    Pool* const outer = current;
    current = this;
    work(context, 0, threads);
    current = outer;
    // Whoever hasn't come yet, comes no more.
    if (guests_.fetch_and(~open, std::memory_order_acq_rel) == open) return true;
    const auto gone = [&] { return guests_.load(std::memory_order_acquire) == 0; };
    if (spin_until(gone)) return true;
    const int64_t start = now_us();
    for (;;) {
      const uint32_t guests = guests_.load(std::memory_order_acquire);
      if (guests == 0) break;
      sleep_on(guests_, guests);
    }
    waited(now_us() - start);
    return true;
  }

  void ring() {
    bell_.fetch_add(1, std::memory_order_seq_cst);
    wake_all(bell_);
  }

  static thread_local Pool* current;    // the one that this thread works for or with
  static thread_local bool guest;       // it is one of its workers
  static thread_local uint32_t heard;   // how often the bell had rung when it last looked

  uint32_t rung() const { return bell_.load(std::memory_order_seq_cst); }

 private:
  static constexpr uint32_t open = 0x80000000u;

  void serve(int place) {
    current = this, guest = true;
    heard = 0;
    for (;;) {
      while (rung() == heard) sleep_on(bell_, heard);
      heard = rung();
      uint32_t guests = guests_.load(std::memory_order_relaxed);
      bool inside = false;
      while ((guests & open) && !inside) inside = guests_.compare_exchange_weak(guests, guests + 1, std::memory_order_acq_rel);
      if (!inside) continue;
      if (place < threads_) work_(context_, place, threads_);
      if (guests_.fetch_sub(1, std::memory_order_acq_rel) == 1) wake_all(guests_);  // the door is shut, and we were the last
    }
  }

  std::mutex busy_;
  std::vector<std::thread> workers_;
  Work work_ = nullptr;
  void* context_ = nullptr;
  int threads_ = 0;
  alignas(64) std::atomic<uint32_t> bell_{0};
  alignas(64) std::atomic<uint32_t> guests_{0};  // how many of the workers are at work, and whether more may come
};
thread_local Pool* Pool::current = nullptr;
thread_local bool Pool::guest = false;
thread_local uint32_t Pool::heard = 0;

}  // namespace

void Shared::clear(int words) {
  for (int i = 0; i < words; ++i) taken_[i].word.store(0, std::memory_order_relaxed);
}

bool Shared::reached(uint32_t count) const { return static_cast<int32_t>(done_.load(std::memory_order_acquire) - count) >= 0; }

void Shared::finish(uint32_t wakes_at) {
  // seq_cst, as in `wait`: either the one who goes to sleep sees the count, or we see the sleeper.
  const uint32_t count = done_.fetch_add(1, std::memory_order_seq_cst) + 1;
  if (static_cast<int32_t>(count - wakes_at) >= 0 && sleepers_.load(std::memory_order_seq_cst) != 0) wake_all(done_);
}

bool Shared::wait(uint32_t count) {
  if (spin_until([&] { return reached(count); })) return true;
  if (Pool::guest) {
    // Home, as whoever sleeps in here must get a core once more before the call can end.
    Pool::heard = Pool::current->rung();
    away_.store(1, std::memory_order_seq_cst);
    return reached(count);
  }
  const int64_t start = now_us();
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    const uint32_t done = done_.load(std::memory_order_seq_cst);
    if (static_cast<int32_t>(done - count) >= 0) break;
    sleep_on(done_, done);
  }
  sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  waited(now_us() - start);
  return true;
}

void Shared::call_back() {
  if (away_.load(std::memory_order_seq_cst) == 0) return;
  if (away_.exchange(0, std::memory_order_seq_cst) != 0 && Pool::current != nullptr) Pool::current->ring();
}

int Worker::begin(int pieces) {
  ++phase_, count_ += static_cast<uint32_t>(pieces), looked_ = 0;
  if (shared_.reached(count_)) return pieces;  // this thread came late
  if (pieces > 1) shared_.call_back();
  return find(pieces);
}

int Worker::next(int pieces) {
  shared_.finish(count_);
  return find(pieces);
}

int Worker::find(int pieces) {
  const int places = shared_.places_, own = place_ < places ? 1 : 0;
  for (; looked_ < places; ++looked_) {
    // Short steps have a piece a place: its owner, if he has a core, is about to take it.
    if (looked_ == own && pieces <= places && soon()) return pieces;
    const int piece = take((place_ + looked_) % places, pieces, looked_ < own);
    if (piece >= 0) return piece;
  }
  return shared_.reached(count_) || shared_.wait(count_) ? pieces : gone;
}

// Which pieces of an owner are left in a phase: from ... to - 1. A word of an earlier phase means all of them.
int Worker::take(int owner, int pieces, bool front) {
  std::atomic<uint64_t>& word = shared_.taken_[owner].word;
  uint64_t was = word.load(std::memory_order_relaxed);
  for (;;) {
    const int32_t behind = static_cast<int32_t>(phase_ - static_cast<uint32_t>(was >> 32));
    if (behind < 0) return -1;  // the others are in a later phase
    int from = pieces * owner / shared_.places_, to = pieces * (owner + 1) / shared_.places_;
    if (behind == 0) from = static_cast<int>(was >> 16 & 0xffff), to = static_cast<int>(was & 0xffff);
    if (from >= to) return -1;
    const int piece = front ? from++ : --to;
    const uint64_t now = static_cast<uint64_t>(phase_) << 32 | static_cast<uint64_t>(from) << 16 | static_cast<uint64_t>(to);
    if (word.compare_exchange_weak(was, now, std::memory_order_relaxed)) return piece;
  }
}

bool Worker::soon() const {
  for (int spins = 0; spins < 50; ++spins) {
    if (shared_.reached(count_)) return true;
    relax();
  }
  return false;
}

// A lane's word: how far it has come, and in the lowest bit whether somebody works on it.
int Worker::next_lane(int lanes, int64_t end, int64_t& from) {
  const int first = lanes * place_ / shared_.places_, last = lanes * (place_ + 1) / shared_.places_;
  for (;;) {
    const uint32_t done = shared_.done_.load(std::memory_order_acquire);
    int best = -1, free = 0;
    bool best_is_mine = false, left = false;
    uint64_t best_at = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const uint64_t at = shared_.taken_[lane].word.load(std::memory_order_acquire);
      if (static_cast<int64_t>(at >> 1) >= end) continue;
      left = true;
      if (at & 1) continue;
      ++free;
      // The one that came least far, of its own ones if there is one: at the end nobody is to be left with a long lane.
      const bool mine = lane >= first && lane < last;
      if (best < 0 || (mine && !best_is_mine) || (mine == best_is_mine && at < best_at)) {
        best = lane, best_is_mine = mine, best_at = at;
      }
    }
    if (!left) return lanes;
    if (best < 0) {
      if (!shared_.wait(done + 1)) return gone;
      continue;
    }
    from = static_cast<int64_t>(best_at >> 1);
    if (!shared_.taken_[best].word.compare_exchange_strong(best_at, best_at | 1, std::memory_order_acq_rel)) continue;
    if (free > 1) shared_.call_back();
    return best;
  }
}

void Worker::leave_lane(int lane, int64_t at) {
  shared_.taken_[lane].word.store(static_cast<uint64_t>(at) << 1, std::memory_order_release);
  shared_.finish(shared_.done_.load(std::memory_order_relaxed) + 1);
}

namespace {

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
#if !defined(__linux__)
  beds.store(new Beds);
#endif
});
#endif

// How a thread computes: rounding, and whether numbers below the smallest normal one become 0. A mode is a thread's own, so a
// team takes over that of the thread that called it, for as long as it works; but in all kernels such numbers are 0, as
// processors take up to a hundred times as long with them, and states, gradients and moments that fade end there and stay.
class Mode {
 public:
#if defined(__SSE__)
  static uint64_t now() { return _mm_getcsr() & ~flags; }
  static void set(uint64_t mode) { _mm_setcsr((_mm_getcsr() & flags) | static_cast<unsigned>(mode)); }
  static constexpr uint64_t flushes = 0x8040;  // results, and what is read

 private:
  static constexpr unsigned flags = 0x3f;  // what happened so far: no part of the mode
#elif defined(__aarch64__)
  static uint64_t now() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
  static constexpr uint64_t flushes = uint64_t{1} << 24;
#else
  static uint64_t now() { return 0; }
  static void set(uint64_t) {}
  static constexpr uint64_t flushes = 0;
#endif
};

// A thread computes in this mode as long as it lives, and then again in its own.
class InMode {
 public:
  explicit InMode(uint64_t mode) : own_(Mode::now()), other_(mode != own_) {
    if (other_) Mode::set(mode);
  }
  ~InMode() {
    if (other_) Mode::set(own_);
  }
  InMode(const InMode&) = delete;

 private:
  const uint64_t own_;
  const bool other_;
};

struct CallInMode {
  Work work;
  void* context;
  uint64_t mode;
};

void in_mode(void* call, int place, int places) {
  const auto& c = *static_cast<CallInMode*>(call);
  const InMode here(c.mode);
  c.work(c.context, place, places);
}

struct OmpCall {
  Work work;
  void* context;
  int threads;
  int64_t finished;  // when the caller itself had nothing left to do
};

void omp_thread(void* call) {
  auto& c = *static_cast<OmpCall*>(call);
  const int place = omp_thread_num();
  if (place < c.threads) c.work(c.context, place, c.threads);
  if (place == 0) c.finished = now_us();
}

struct Pieces {
  Shared& shared;
  int pieces;
  Work work;
  void* context;

  static void join(void* self, int place, int) {
    const auto& p = *static_cast<const Pieces*>(self);
    Worker(p.shared, place).phase(p.pieces, [&](int piece) { p.work(p.context, piece, p.pieces); });
  }
};

}  // namespace

void use_openmp(OmpParallel parallel, OmpNumber num_threads, OmpNumber thread_num) {
  omp_parallel = parallel, omp_num_threads = num_threads, omp_thread_num = thread_num;
}

void run_team(int threads, Work work, void* context) {
  const InMode here(Mode::now() | Mode::flushes);
  if (threads <= 1 || inside) return work(context, 0, threads < 1 ? 1 : threads);
  struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
  } now;
  CallInMode call_in_mode{work, context, Mode::now()};
  // An OpenMP runtime that was used before a fork hangs in the child; our own pool does not. On a busy machine we don't take
  // it either: it ends no call before each of its threads has had a core, and spins until then.
  if (omp_parallel != nullptr && !forked.load(std::memory_order_acquire) && !busy()) {
    OmpCall call{in_mode, &call_in_mode, threads, 0};
    // 0: as many as the runtime has, and those beyond `threads` go home at once. A team of another size than the last
    // one would make GNU's runtime end threads and start new ones.
    omp_parallel(omp_thread, &call, 0, 0);
    waited(now_us() - call.finished);
  } else if (!own_pool().run(threads, in_mode, &call_in_mode)) {
    work(context, 0, threads);
  }
}

void run_pieces(int threads, int pieces, Work work, void* context) {
  if (threads <= 1 || pieces <= 1) {
    const InMode here(Mode::now() | Mode::flushes);
    for (int piece = 0; piece < pieces; ++piece) work(context, piece, pieces);
    return;
  }
  Shared shared(threads, threads);
  Pieces all{shared, pieces, work, context};
  run_team(threads, Pieces::join, &all);
}

}  // namespace tidegate
