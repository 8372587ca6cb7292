// Threads that work on one call together, and how they share its work.
//
// A thread can lose its core to another program at any moment, for some milliseconds: longer than most calls take. So work is
// not divided among threads beforehand. It lies in pieces, and whoever is free takes the next one: first those of its own
// place, always the same ones, so that what they read stays in the near caches; then those that others have not begun. Bits
// don't depend on who does a piece. A thread that lost its core holds up the others only where they need the one piece that it
// had begun. They wait asleep, as a thread that spins takes the core on which the other could go on.

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

// What is shared by those who work on one thing: which pieces are taken, and how many are done.
class Shared {
 public:
  static constexpr int most_places = 256;  // threads beyond have no pieces of their own

  // threads: those that may come; places: those that have their own pieces; lanes: at most `most_places`.
  [[gnu::always_inline]] Shared(int threads, int places, int lanes = 0)
      : alone_(threads == 1), places_(places < most_places ? places : most_places) {
    if (!alone_) clear(places_ < lanes ? lanes : places_);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  [[gnu::always_inline]] bool alone() const { return alone_; }  // nobody else can come

 private:
  friend class Worker;
  struct alignas(64) Taken {
    std::atomic<uint64_t> word;
  };

  void clear(int words);
  bool reached(uint32_t count) const;
  void finish(uint32_t wakes_at);
  bool wait(uint32_t count);  // false: the thread is to go home
  void call_back();

  const bool alone_;
  const int places_;
  alignas(64) std::atomic<uint32_t> done_{0};     // pieces, of all phases
  alignas(64) std::atomic<uint32_t> sleepers_{0};
  std::atomic<uint32_t> away_{0};                 // somebody went home while there was nothing to do
  Taken taken_[most_places];
};

// One of the threads that work on something shared. All of them run through the same phases, whose number and sizes depend on
// the call alone; one that comes late finds that those before are done.
class Worker {
 public:
  [[gnu::always_inline]] Worker(Shared& shared, int place) : shared_(shared), place_(place) {}

  // work(piece) for each of `pieces` pieces, by whoever is free; returns when all are done. False: return at once from all that
  // lies above, touching nothing; the others don't need this thread, and call it back when they do.
  // (`work` is called in one place only, so that the compiler makes one copy of it.)
  template <class Work>
  [[gnu::always_inline]] inline bool phase(int pieces, const Work& work) {
    const bool alone = shared_.alone_;
    int piece = alone ? 0 : begin(pieces);
    while (piece >= 0 && piece < pieces) {
      work(piece);
      piece = alone ? piece + 1 : next(pieces);
    }
    return piece != gone;
  }

  // `lanes` sequences of steps, 0 ... end - 1 each; the steps of a lane come one after the other, and lanes know nothing of each
  // other. work(lane, from) does some steps from `from` on, and returns how far it came. Nothing else may be done with what is
  // shared here.
  template <class Work>
  [[gnu::always_inline]] inline bool lanes(int lanes, int64_t end, const Work& work) {
    const bool alone = shared_.alone_;
    int64_t from = 0;
    int lane = alone ? 0 : next_lane(lanes, end, from);
    while (lane >= 0 && lane < lanes) {
      from = work(lane, from);
      if (!alone) leave_lane(lane, from), lane = next_lane(lanes, end, from);
      else if (from >= end) ++lane, from = 0;
    }
    return lane != gone;
  }

 private:
  static constexpr int gone = -2;

  int begin(int pieces);
  int next(int pieces);
  int find(int pieces);
  int take(int owner, int pieces, bool front);
  bool soon() const;
  int next_lane(int lanes, int64_t end, int64_t& from);
  void leave_lane(int lane, int64_t at);

  Shared& shared_;
  const int place_;
  uint32_t phase_ = 0, count_ = 0;
  int looked_ = 0;  // through the pieces of how many owners
};

// Pieces for a team: more than threads, as one of them may lose its core, where there is work enough for `most` pieces.
[[gnu::always_inline]] inline int pieces_of(int threads, int64_t most) {
  if (threads <= 1) return 1;
  const int64_t times = most / threads;
  return threads * static_cast<int>(times < 1 ? 1 : times > 4 ? 4 : times);
}

using Work = void (*)(void* context, int place, int places);

// work(context, place, places) on the calling thread, as place 0, and on up to threads - 1 others, which may come late or
// never: for work that is shared by a `Worker`. Returns when all that came are gone. Safe to call from many threads at once, and
// in a child process after fork.
void run_team(int threads, Work work, void* context);

// work(context, piece, pieces) for each piece, on up to `threads` threads.
void run_pieces(int threads, int pieces, Work work, void* context);

}  // namespace tidegate
