// The kernels, once, for the instruction set of vec.h. Compiled again for each set with TIDEGATE_ISA as its namespace;
// nothing here comes from the standard library's templates, so that no function of one set leaks into another.
//
// Every sum over inputs or units runs through `multiply`: one accumulator a result, in the order k = 0, 1, 2 ..., put
// by after the same number of terms. So a result's bits do not depend on the size of the tile that it was computed in, and with that not on the rest of the
// batch, on chunks, or on threads.

#include "gru.h"
#include "kernels.h"
#include "team.h"
#include "vec.h"

#define UNROLL _Pragma("GCC unroll 32")

namespace tidegate {
namespace TIDEGATE_ISA {

template <class Real>
using Vec = typename VecOf<Real>::V;
template <class Real>
constexpr int lanes = VecOf<Real>::lanes;

template <class A>
inline A smaller(A a, A b) {
  return a < b ? a : b;
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t padded(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// A sum of many terms in one accumulator loses a rounding of the whole for every term, so after so many terms the
// part is put by and a new one begun. That costs 2 % of the time and, at 768 terms, divides the error by four.
constexpr int64_t sum_terms = 64;

// sums[row][v] += Σ_k a[row][k] w[v][k]: `Rows` rows times `Blocks` blocks of `Each` vectors. A block's vectors lie
// side by side for every k: w[block block_size + (k Each + v) lanes].
template <class Real, int Rows, int Blocks, int Each>
inline void multiply(Vec<Real> (&sums)[Rows][Blocks * Each], const Real* const (&a)[Rows], const Real* w,
                     int64_t block_size, int64_t K) {
  constexpr int L = lanes<Real>;
  for (int64_t k_0 = 0; k_0 < K; k_0 += sum_terms) {
    const int64_t k_1 = smaller(k_0 + sum_terms, K);
    Vec<Real> s[Rows][Blocks * Each];  // local: the compiler keeps it in registers
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Each; ++v) s[m][v] = splat<Real>(0);
    }
    for (int64_t k = k_0; k < k_1; ++k) {
      Vec<Real> wk[Blocks * Each];
      UNROLL for (int v = 0; v < Blocks * Each; ++v)
        wk[v] = load(w + (v / Each) * block_size + (k * Each + v % Each) * L);
      UNROLL for (int m = 0; m < Rows; ++m) {
        const Vec<Real> value = splat(a[m][k]);
        UNROLL for (int v = 0; v < Blocks * Each; ++v) s[m][v] = fma(value, wk[v], s[m][v]);
      }
    }
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Each; ++v) sums[m][v] = sums[m][v] + s[m][v];
    }
  }
}

// Call tile.template run<Rows>(first) until all of n rows are done, in tiles as equal as can be.
template <int Most, class Tile>
inline void for_tiles(int64_t n, const Tile& tile) {
  for (int64_t at = 0; at < n;) {
    const int64_t left = n - at;
    const int rows = static_cast<int>(ceil_div(left, ceil_div(left, Most)));
    switch (rows) {
      case 1: tile.template run<1>(at); break;
      case 2: tile.template run<2>(at); break;
      case 3: tile.template run<3>(at); break;
      case 4: tile.template run<4>(at); break;
      case 5: if constexpr (Most > 4) tile.template run<5>(at); break;
      case 6: if constexpr (Most > 4) tile.template run<6>(at); break;
      case 7: if constexpr (Most > 4) tile.template run<7>(at); break;
      case 8: if constexpr (Most > 4) tile.template run<8>(at); break;
    }
    at += rows;
  }
}

// ------------------------------------------------------------------------------------------------ weights

// Where the parts of packed weights lie. Units go in blocks of one vector; the last one is filled up with zeros.
//     x:   block, input feature, gate r z n, lane        h: block, unit, gate r z n, lane          Reset::after
//                                                        h: block, unit, gate r z, lane, and n's   Reset::before
//     bias_x: block, gate, lane: b_ir + b_hr, b_iz + b_hz, b_in (before: b_in + b_hn)     bias_hn: block, lane
template <class Real>
struct Layout {
  int64_t I, H, blocks;
  bool after;
  Layout(int64_t I_, int64_t H_, Reset reset)
      : I(I_), H(H_), blocks(ceil_div(H_, lanes<Real>)), after(reset == Reset::after) {}
  int64_t x_block() const { return I * 3 * lanes<Real>; }
  int64_t h_block() const { return H * (after ? 3 : 2) * lanes<Real>; }
  int64_t n_block() const { return H * lanes<Real>; }
  int64_t h_at() const { return blocks * x_block(); }
  int64_t n_at() const { return h_at() + blocks * h_block(); }
  int64_t bias_x_at() const { return n_at() + (after ? 0 : blocks * n_block()); }
  int64_t bias_hn_at() const { return bias_x_at() + blocks * 3 * lanes<Real>; }
  int64_t size() const { return bias_hn_at() + blocks * lanes<Real>; }
};

// to[(k Each + v) lanes + lane] = from[(v gate_step + lane) row + k], for n lanes; the others are zeros.
template <class Real>
inline void pack_block(Real* to, const Real* from, int64_t row, int64_t gate_step, int each, int n, int64_t K) {
  constexpr int L = lanes<Real>;
  constexpr int64_t some = 16;  // columns at a time, so that what is written stays in the nearest cache
  for (int64_t k0 = 0; k0 < K; k0 += some) {
    const int64_t k1 = smaller(k0 + some, K);
    for (int v = 0; v < each; ++v) {
      for (int lane = 0; lane < L; ++lane) {
        const Real* source = from + (v * gate_step + lane) * row;
        for (int64_t k = k0; k < k1; ++k) to[(k * each + v) * L + lane] = lane < n ? source[k] : Real(0);
      }
    }
  }
}

template <class Real>
struct PackJob {
  const Weights<Real>* weights;
  Layout<Real> layout;
  Real* to;

  static void work(void* self, int member, int members) { static_cast<const PackJob*>(self)->run(member, members); }

  void run(int member, int members) const {
    constexpr int L = lanes<Real>;
    const Weights<Real>& w = *weights;
    const Layout<Real>& at = layout;
    const int64_t H = at.H;
    for (int64_t block = at.blocks * member / members; block < at.blocks * (member + 1) / members; ++block) {
      const int64_t unit = block * L;
      const int n = static_cast<int>(smaller<int64_t>(L, H - unit));
      pack_block(to + block * at.x_block(), w.w_ih + unit * w.w_ih_row, w.w_ih_row, H, 3, n, at.I);
      pack_block(to + at.h_at() + block * at.h_block(), w.w_hh + unit * w.w_hh_row, w.w_hh_row, H, at.after ? 3 : 2, n,
                 H);
      if (!at.after) {
        pack_block(to + at.n_at() + block * at.n_block(), w.w_hh + (2 * H + unit) * w.w_hh_row, w.w_hh_row, H, 1, n, H);
      }
      for (int lane = 0; lane < L; ++lane) {
        Real* bias_x = to + at.bias_x_at() + block * 3 * L + lane;
        Real hn = 0;
        for (int gate = 0; gate < 3; ++gate) {
          const int64_t i = gate * H + unit + lane;
          const Real of_x = lane < n && w.b_ih ? w.b_ih[i] : Real(0);
          const Real of_h = lane < n && w.b_hh ? w.b_hh[i] : Real(0);
          const bool apart = at.after && gate == 2;  // r scales this one
          bias_x[gate * L] = apart ? of_x : of_x + of_h;
          if (apart) hn = of_h;
        }
        to[at.bias_hn_at() + block * L + lane] = hn;
      }
    }
  }
};

template <class Real>
int64_t packed_size(int64_t I, int64_t H, Reset reset) {
  return Layout<Real>(I, H, reset).size();
}

template <class Real>
void pack(const Weights<Real>& weights, int64_t I, int64_t H, Reset reset, int threads, Real* to) {
  PackJob<Real> job{&weights, Layout<Real>(I, H, reset), to};
  run_team(3 * H * (I + H) < 100000 ? 1 : threads, PackJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ steps and rows

// The rows of a call in the order in which they are worked on: `step` 0 is the first one of the direction.
struct Steps {
  const Sizes& sizes;
  const int64_t* offsets;  // [T]: batch_sizes summed up; null without them
  bool reverse;

  int64_t time(int64_t step) const { return reverse ? sizes.T - 1 - step : step; }
  int64_t active(int64_t t) const { return offsets ? sizes.batch_sizes[t] : sizes.B; }
  int64_t row(int64_t t, int64_t b) const { return (offsets ? offsets[t] : t * sizes.B) + b; }
  bool first(int64_t t, int64_t b) const {  // whether this is where the sequence of row b begins in this direction
    return reverse ? t == sizes.T - 1 || (offsets && b >= sizes.batch_sizes[t + 1]) : t == 0;
  }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
};

// How a team splits one direction: by rows, without ever waiting for each other, where there are enough of them;
// by units, with a barrier a step, where a step is long enough to pay for it.
struct Share {
  int64_t row_0, row_1, block_0, block_1;
  bool by_units;
};

inline bool splits_units(const Sizes& s, int members) {
  if (members <= 1) return false;
  // A barrier costs some tenths of a microsecond; this many multiply-adds a member take more than one.
  const bool long_steps = 3 * s.B * s.H * s.H / members >= 60000;
  return long_steps && s.B < members * (max_rows / 2 + 1);
}

inline Share share_of(const Sizes& s, int64_t blocks, int member, int members) {
  Share share{0, s.B, 0, blocks, splits_units(s, members)};
  if (share.by_units) {
    share.block_0 = blocks * member / members, share.block_1 = blocks * (member + 1) / members;
  } else {
    share.row_0 = s.B * member / members, share.row_1 = s.B * (member + 1) / members;
  }
  return share;
}

// Which direction a member of the team works on, and its place in the part of the team that does. One member does
// both, one after the other.
struct Place {
  int member, members;
};
inline Place place_in(int direction, int directions, int member, int members) {
  if (directions == 1 || members == 1) return {member, members};
  if (member % 2 != direction) return {-1, 0};
  return {member / 2, (members + 1 - direction) / 2};
}

// A team of this size is worth waking for so many multiply-adds.
inline int useful_threads(const Sizes& s, int directions, int64_t multiply_adds) {
  const int64_t enough = multiply_adds / 200000;  // some microseconds each
  int64_t most = smaller<int64_t>(s.threads, enough);
  if (directions * s.B < most && !splits_units(s, static_cast<int>(ceil_div(most, directions)))) {
    most = directions * s.B;
  }
  return static_cast<int>(most < 1 ? 1 : most);
}

inline int64_t total_rows(const Sizes& s) {
  if (!s.batch_sizes) return s.T * s.B;
  int64_t rows = 0;
  for (int64_t t = 0; t < s.T; ++t) rows += s.batch_sizes[t];
  return rows;
}

// ------------------------------------------------------------------------------------------------ forwards

template <class Real>
struct ForwardJob {
  const Sizes& sizes;
  const Forward<Real>* runs;
  int directions;
  const int64_t* offsets;
  Real* scratch;  // a part for each member
  int64_t scratch_each;
  Barrier* barriers;  // one a direction

  static void work(void* self, int member, int members) {
    const auto& job = *static_cast<const ForwardJob*>(self);
    for (int direction = 0; direction < job.directions; ++direction) {
      const Place place = place_in(direction, job.directions, member, members);
      if (place.member >= 0) job.run(direction, place, job.scratch + member * job.scratch_each);
    }
  }

  void run(int direction, Place place, Real* mine) const;
};

// gates_x of a chunk of steps take at most so many values, to stay in the second-level cache.
constexpr int64_t gates_x_values = 48 * 1024;

template <class Real>
inline int64_t gates_x_row(int64_t blocks) {
  return blocks * 3 * lanes<Real>;
}

template <class Real>
int64_t forward_scratch(const Sizes& s) {
  const int64_t row = gates_x_row<Real>(ceil_div(s.H, lanes<Real>));
  const int64_t step = s.B * row;
  const int64_t all = s.T * step;
  const int64_t chunk = all < gates_x_values ? all : step < gates_x_values ? gates_x_values : step;
  // ... and for Reset::before r * h_prev and z, which all members see: [B, H] twice
  return padded(chunk + 2 * s.B * padded(s.H, lanes<Real>), 16);
}

// One direction as one member of its team does it.
template <class Real>
struct ForwardMember {
  static constexpr int L = lanes<Real>;
  const Sizes& s;
  const Forward<Real>& run;
  Steps steps;
  Layout<Real> at;
  Share share;
  Real* gates_x;
  Real* shared;  // Reset::before: r * h_prev [B, H] of the whole team, then z
  int64_t rows, columns;  // of gates_x, a step
  int64_t turn;  // even or odd: where a lone row begins to read the weights

  const Real* weights() const { return run.weights->memory; }
  const Real* x(int64_t t, int64_t b) const {
    return run.x + (steps.offsets ? steps.row(t, b) * run.x_row : t * run.x_step + b * run.x_row);
  }
  const Real* h_prev(int64_t t, int64_t b) const {
    return steps.first(t, b) ? run.h_0 + b * run.h_0_row : run.output + steps.row(steps.before(t), b) * run.output_row;
  }
  Real* h_t(int64_t t, int64_t b) const { return run.output + steps.row(t, b) * run.output_row; }
  Real* gates_x_of(int64_t step, int64_t b, int64_t block) const {
    return gates_x + (step * rows + (b - share.row_0)) * columns + (block - share.block_0) * 3 * L;
  }
  int units(int64_t block) const { return static_cast<int>(smaller<int64_t>(L, s.H - block * L)); }

  // What x has to say to the gates, for all rows of steps first ... last - 1 at once.
  template <int Blocks>
  struct Project {
    const ForwardMember& me;
    int64_t first, last, block;
    mutable int64_t step, b;  // the next row

    void next() const {
      ++b;
      while (step < last && b >= smaller(me.share.row_1, me.steps.active(me.steps.time(step)))) {
        ++step, b = me.share.row_0;
      }
    }
    template <int Rows>
    void run(int64_t) const {
      const Real* a[Rows];
      Real* to[Rows];
      Vec<Real> sums[Rows][Blocks * 3];
      const Real* bias = me.weights() + me.at.bias_x_at() + block * 3 * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        a[m] = me.x(me.steps.time(step), b);
        to[m] = me.gates_x_of(step - first, b, block);
        UNROLL for (int v = 0; v < Blocks * 3; ++v) sums[m][v] = load(bias + v * L);
        next();
      }
      multiply<Real, Rows, Blocks, 3>(sums, a, me.weights() + block * me.at.x_block(), me.at.x_block(), me.at.I);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int v = 0; v < Blocks * 3; ++v) store(to[m] + v * L, sums[m][v]);
      }
    }
  };

  template <int Blocks>
  Project<Blocks> project_of(int64_t first, int64_t last, int64_t block) const {
    Project<Blocks> tile{*this, first, last, block, first, share.row_0 - 1};
    tile.next();
    return tile;
  }

  void project(int64_t first, int64_t last) const {
    int64_t n = 0;
    for (int64_t step = first; step < last; ++step) n += active_rows(steps.time(step));
    for (int64_t block = share.block_0; block < share.block_1; ++block) {
      for_tiles<max_rows>(n, project_of<1>(first, last, block));
    }
  }

  int64_t active_rows(int64_t t) const {
    const int64_t end = smaller(share.row_1, steps.active(t));
    return end > share.row_0 ? end - share.row_0 : 0;
  }

  // One step of Rows rows and Blocks blocks of units: the product with h_prev, and the gates on its registers.
  template <int Blocks>
  struct After {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t b = me.share.row_0 + first;
      const Real* h[Rows];
      Vec<Real> sums[Rows][Blocks * 3];
      const Real* bias = me.weights() + me.at.bias_hn_at() + block * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.h_prev(t, b + m);
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, b + m, block + u);
          sums[m][3 * u] = load(x);
          sums[m][3 * u + 1] = load(x + L);
          sums[m][3 * u + 2] = load(bias + u * L);
        }
      }
      multiply<Real, Rows, Blocks, 3>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
                                      me.at.h_block(), me.at.H);
      // One gate of all rows, then the next gate: a row's own three wait for each other, those of different rows don't.
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][3 * u] = sigmoid<Real>(sums[m][3 * u]);
      }
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][3 * u + 1] = sigmoid<Real>(sums[m][3 * u + 1]);
      }
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Real> r = sums[m][3 * u], z = sums[m][3 * u + 1], h_n = sums[m][3 * u + 2];
          const Vec<Real> x_n = load(me.gates_x_of(step, b + m, block + u) + 2 * L);
          const Vec<Real> candidate = tanh<Real>(fma(r, h_n, x_n));
          const Vec<Real> old = load_first(h[m] + unit, n);
          store_first(me.h_t(t, b + m) + unit, fma(z, old, (splat<Real>(1) - z) * candidate), n);
          if (me.run.saved) {
            Real* saved = me.run.saved + me.steps.row(t, b + m) * 4 * me.at.H + unit;
            store_first(saved, r, n);
            store_first(saved + me.at.H, z, n);
            store_first(saved + 2 * me.at.H, candidate, n);
            store_first(saved + 3 * me.at.H, h_n, n);
          }
        }
      }
    }
  };

  // Reset::before needs r * h_prev of all units for the candidate: two products, one after the other.
  template <int Blocks>
  struct BeforeGates {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t b = me.share.row_0 + first;
      const Real* h[Rows];
      Vec<Real> sums[Rows][Blocks * 2];
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.h_prev(t, b + m);
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, b + m, block + u);
          sums[m][2 * u] = load(x);
          sums[m][2 * u + 1] = load(x + L);
        }
      }
      multiply<Real, Rows, Blocks, 2>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
                                      me.at.h_block(), me.at.H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Real> r = sigmoid<Real>(sums[m][2 * u]);
          const Vec<Real> z = sigmoid<Real>(sums[m][2 * u + 1]);
          Real* to = me.shared + (b + m) * me.h_padded() + unit;
          store(to, r * load_first(h[m] + unit, n));
          store(to + me.s.B * me.h_padded(), z);
          if (me.run.saved) {
            Real* saved = me.run.saved + me.steps.row(t, b + m) * 3 * me.at.H + unit;
            store_first(saved, r, n);
            store_first(saved + me.at.H, z, n);
          }
        }
      }
    }
  };

  template <int Blocks>
  struct BeforeCandidate {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t b = me.share.row_0 + first;
      const Real* rh[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        rh[m] = me.shared + (b + m) * me.h_padded();
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = load(me.gates_x_of(step, b + m, block + u) + 2 * L);
      }
      multiply<Real, Rows, Blocks, 1>(sums, rh, me.weights() + me.at.n_at() + block * me.at.n_block(),
                                      me.at.n_block(), me.at.H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Real> candidate = tanh<Real>(sums[m][u]);
          const Vec<Real> z = load(rh[m] + me.s.B * me.h_padded() + unit);
          const Vec<Real> old = load_first(me.h_prev(t, b + m) + unit, n);
          store_first(me.h_t(t, b + m) + unit, fma(z, old, (splat<Real>(1) - z) * candidate), n);
          if (me.run.saved) {
            store_first(me.run.saved + (me.steps.row(t, b + m) * 3 + 2) * me.at.H + unit, candidate, n);
          }
        }
      }
    }
  };

  int64_t h_padded() const { return padded(s.H, L); }

  // All blocks of units of this member. With few rows, several blocks at a time: a lone row has too few sums to keep
  // the multipliers busy. And then the time goes into reading weights, so every other step goes through them from the
  // last block to the first: what the step before read last is still in the nearer cache.
  template <template <int> class Tile>
  void all_blocks(int64_t t, int64_t step) const {
    const int64_t n = active_rows(t);
    if (n == 1) return few_blocks<Tile, 4>(t, step, n);
    if (n == 2) return few_blocks<Tile, 2>(t, step, n);
    for (int64_t block = share.block_0; block < share.block_1; ++block) {
      for_tiles<max_rows>(n, Tile<1>{*this, t, step, block});
    }
  }

  template <template <int> class Tile, int Most>
  void few_blocks(int64_t t, int64_t step, int64_t n, int64_t x_first = -1) const {
    const int64_t blocks = share.block_1 - share.block_0, tiles = ceil_div(blocks, Most);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t tile = (turn + step) % 2 ? tiles - 1 - i : i;
      const int64_t block = share.block_0 + tile * Most, end = smaller(block + Most, share.block_1);
      if (end - block == Most) {
        if (x_first >= 0) for_tiles<2>(n, project_of<Most>(x_first, x_first + 1, block));
        for_tiles<2>(n, Tile<Most>{*this, t, step, block});
      } else {
        for (int64_t one = block; one < end; ++one) {
          if (x_first >= 0) for_tiles<2>(n, project_of<1>(x_first, x_first + 1, one));
          for_tiles<2>(n, Tile<1>{*this, t, step, one});
        }
      }
    }
  }

  void steps_of(int64_t first, int64_t last, Barrier& barrier, int members) const {
    const int meet = share.by_units ? members : 1;
    for (int64_t step = first; step < last; ++step) {
      const int64_t t = steps.time(step);
      if (at.after) {
        all_blocks<After>(t, step - first);
      } else {
        all_blocks<BeforeGates>(t, step - first);
        barrier.wait(meet);
        all_blocks<BeforeCandidate>(t, step - first);
      }
      barrier.wait(meet);
    }
  }

  // A single step of few rows, as in a stream: x's part of a block right before the block itself, so that the way
  // through the weights can turn round from one call to the next.
  bool alone(int64_t first, int64_t last) const {
    const int64_t n = active_rows(steps.time(first));
    return last - first == 1 && at.after && (n == 1 || n == 2);
  }

  void step_alone(int64_t first, Barrier& barrier, int members) const {
    const int64_t t = steps.time(first), n = active_rows(t);
    if (n == 1) few_blocks<After, 4>(t, 0, n, first);
    else few_blocks<After, 2>(t, 0, n, first);
    barrier.wait(share.by_units ? members : 1);
  }

  void last_states() const {
    if (!run.h_n) return;
    for (int64_t b = share.row_0; b < share.row_1; ++b) {
      const Real* from = run.h_0 + b * run.h_0_row;
      if (s.T > 0) {
        int64_t t = 0;
        if (!steps.reverse) {
          t = s.T - 1;
          while (steps.active(t) <= b) --t;
        }
        from = h_t(t, b);
      }
      const int64_t begin = share.block_0 * L, end = smaller(share.block_1 * L, s.H);
      Real* to = run.h_n + b * s.H;
      for (int64_t unit = begin; unit < end; ++unit) to[unit] = from[unit];
    }
  }
};

template <class Real>
void ForwardJob<Real>::run(int direction, Place place, Real* mine) const {
  const Layout<Real> at(sizes.I, sizes.H, sizes.reset);
  const Share share = share_of(sizes, at.blocks, place.member, place.members);
  const int64_t rows = share.row_1 - share.row_0;
  const int64_t columns = gates_x_row<Real>(share.block_1 - share.block_0);
  // By units, the members share r * h_prev: it lies in the scratch of the direction's first member.
  const int64_t turn = runs[direction].weights->turn.load(std::memory_order_relaxed);
  const int64_t before = sizes.reset == Reset::before ? 2 * sizes.B * padded(sizes.H, lanes<Real>) : 0;
  Real* shared = share.by_units ? scratch + (directions == 2 ? direction : 0) * scratch_each : mine;
  ForwardMember<Real> me{sizes, runs[direction], {sizes, offsets, runs[direction].reverse}, at, share,
                         mine + before, shared, rows, columns, turn};
  const int64_t step_values = rows * columns;
  const int64_t chunk = step_values && step_values < gates_x_values ? gates_x_values / step_values : 1;
  for (int64_t first = 0; first < sizes.T; first += chunk) {
    const int64_t last = smaller(first + chunk, sizes.T);
    if (me.alone(first, last)) {
      me.step_alone(first, barriers[direction], place.members);
      ++me.turn;
    } else {
      me.project(first, last);
      me.steps_of(first, last, barriers[direction], place.members);
    }
  }
  me.last_states();
}

template <class Real>
int forward_threads(const Sizes& s, int directions) {
  return useful_threads(s, directions, directions * total_rows(s) * 3 * s.H * (s.I + s.H));
}

template <class Real>
void forward(const Sizes& sizes, const Forward<Real>* runs, int directions, int threads, const int64_t* offsets,
             Real* scratch, int64_t scratch_each) {
  Barrier barriers[2];
  ForwardJob<Real> job{sizes, runs, directions, offsets, scratch, scratch_each, barriers};
  run_team(threads, ForwardJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ backwards
//
// With d_h the whole gradient of h_t, and a = the value inside σ or tanh:
//
//     d_n_a = d_h (1 - z) (1 - n²)        d_z_a = d_h (h_prev - n) z (1 - z)        carry = d_h z
//     after:   d_r_a = d_n_a h_n r (1 - r)       d_h_n = d_n_a r           (h_n = W_hn h_prev + b_hn)
//              carry += [d_r_a d_z_a d_h_n] W_hh
//     before:  d_rh = d_n_a W_hn                 d_r_a = d_rh h_prev r (1 - r)
//              carry += d_rh r + [d_r_a d_z_a] W_h(rz)
//
// and carry, with d_output of the step before, is the d_h of the step before. The gradients of a chunk of steps lie in
// d_gates [rows, gates, H] in the order r, z, h_n, n_a (before: r, z, n_a); the weights' gradients are one matrix
// product a chunk. The length of a chunk depends on the batch alone, so that the sums are the same on any number of
// threads.

constexpr int64_t chunk_rows = 256;

inline int64_t chunk_steps(const Sizes& s) { return s.B && s.B < chunk_rows ? chunk_rows / s.B : 1; }

template <class Real>
struct BackwardLayout {
  static constexpr int L = lanes<Real>;
  int64_t H, I, gates, h_blocks, x_blocks, panels, rows;
  bool after, with_x, with_w_ih, with_w_hh;
  BackwardLayout(const Sizes& s, const Backward<Real>& run)
      : H(s.H), I(s.I), gates(s.reset == Reset::after ? 4 : 3), h_blocks(ceil_div(H, L)), x_blocks(ceil_div(I, L)),
        panels(ceil_div(H, max_rows)), rows(smaller(chunk_steps(s), s.T) * s.B), after(s.reset == Reset::after),
        with_x(run.d_x), with_w_ih(run.d_w_ih), with_w_hh(run.d_w_hh) {}
  int64_t carry_row() const { return h_blocks * L; }
  // in the order in which they lie
  int64_t w_hh_size() const { return h_blocks * 3 * H * L; }                       // block of units, gate row, lane
  int64_t w_ih_size() const { return with_x ? x_blocks * 3 * H * L : 0; }          // block of features, gate row, lane
  int64_t carry_size(int64_t B) const { return padded(B * carry_row(), 16); }
  int64_t left_size() const { return gates * panels * rows * max_rows; }           // gate, panel, row, unit in panel
  int64_t right_blocks() const {
    return (with_w_hh ? h_blocks * (after ? 1 : 2) : 0) + (with_w_ih ? x_blocks : 0);
  }
  int64_t right_size() const { return right_blocks() * rows * L; }                 // block, row, lane
  int64_t d_gates_size() const { return padded(rows * gates * H, 16); }
  int64_t size(int64_t B) const {
    return w_hh_size() + w_ih_size() + carry_size(B) + padded(left_size(), 16) + right_size() + d_gates_size();
  }
};

template <class Real>
struct BackwardMember {
  static constexpr int L = lanes<Real>;
  const Sizes& s;
  const Backward<Real>& run;
  Steps steps;
  BackwardLayout<Real> at;
  Share share;
  Place place;
  Barrier& barrier;
  Real *w_hh, *w_ih, *carry, *left, *right, *d_gates;
  int64_t chunk_first;  // the steps of this chunk: chunk_first ... chunk_last - 1, worked on from the last
  int64_t chunk_last;
  int64_t chunk_row;    // the lowest row number in it
  int64_t chunk_size;   // its rows

  void meet() const { barrier.wait(place.members); }
  void meet_by_units() const { if (share.by_units) barrier.wait(place.members); }

  Real* d_gates_of(int64_t t, int64_t b) const { return d_gates + (steps.row(t, b) - chunk_row) * at.gates * at.H; }
  const Real* saved(int64_t t, int64_t b) const { return run.saved + steps.row(t, b) * at.gates * at.H; }
  const Real* h_prev(int64_t t, int64_t b) const {
    return steps.first(t, b) ? run.h_0 + b * run.h_0_row : run.output + steps.row(steps.before(t), b) * run.output_row;
  }
  const Real* x(int64_t t, int64_t b) const {
    return run.x + (steps.offsets ? steps.row(t, b) * run.x_row : t * run.x_step + b * run.x_row);
  }
  int units(int64_t block) const { return static_cast<int>(smaller<int64_t>(L, s.H - block * L)); }

  // d_h of these units, all of it but d_output, becomes the gradients of the gates; returns d_h z.
  Vec<Real> gates(int64_t t, int64_t b, int64_t block, Vec<Real> d_h) const {
    const int64_t unit = block * L, H = at.H;
    const int n = units(block);
    if (run.d_output) {
      const Real* d = run.d_output +
                      (steps.offsets ? steps.row(t, b) * run.d_output_row : t * run.d_output_step + b * run.d_output_row);
      d_h = d_h + load_first(d + unit, n);
    }
    const Real* from = saved(t, b) + unit;
    Real* to = d_gates_of(t, b) + unit;
    const Vec<Real> one = splat<Real>(1);
    const Vec<Real> z = load_first(from + H, n);
    const Vec<Real> candidate = load_first(from + 2 * H, n);
    const Vec<Real> d_n = d_h * (one - z) * ((one - candidate) * (one + candidate));
    const Vec<Real> old = load_first(h_prev(t, b) + unit, n);
    store_first(to + H, d_h * (old - candidate) * (z * (one - z)), n);
    if (at.after) {
      const Vec<Real> r = load_first(from, n);
      const Vec<Real> h_n = load_first(from + 3 * H, n);
      store_first(to, d_n * h_n * (r * (one - r)), n);
      store_first(to + 2 * H, d_n * r, n);
      store_first(to + 3 * H, d_n, n);
    } else {
      store_first(to + 2 * H, d_n, n);
    }
    return d_h * z;
  }

  // Rows that need no product first: those of the chunk's last step, and those whose sequence ends here.
  void begin_rows(int64_t t, int64_t row_0, int64_t row_1) const {
    for (int64_t b = row_0; b < row_1; ++b) {
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        Real* c = carry + b * at.carry_row() + block * L;
        store(c, gates(t, b, block, load(c)));
      }
    }
  }

  // carry += d_gates(t)[first gate ... last gate] W_hh; `then`: straight on to the gates of the step before.
  template <int Blocks>
  struct Product {
    const BackwardMember& me;
    int64_t t, row_0, block, first_gate, last_gate, then;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t b = row_0 + first, H = me.at.H;
      const Real* d[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = me.d_gates_of(t, b + m) + first_gate * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = load(me.carry + (b + m) * me.at.carry_row() + (block + u) * L);
      }
      multiply<Real, Rows, Blocks, 1>(sums, d, me.w_hh + (block * 3 + first_gate) * H * L,
                                      3 * H * L, (last_gate - first_gate) * H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          Vec<Real> value = sums[m][u];
          if (then >= 0) value = me.gates(then, b + m, block + u, value);
          store(me.carry + (b + m) * me.at.carry_row() + (block + u) * L, value);
        }
      }
    }
  };

  // Reset::before: d_rh = d_n W_hn, and with it d_r and its part of carry.
  template <int Blocks>
  struct Candidate {
    const BackwardMember& me;
    int64_t t, row_0, block, first_gate, last_gate, then;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t b = row_0 + first, H = me.at.H;
      const Real* d[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = me.d_gates_of(t, b + m) + 2 * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      multiply<Real, Rows, Blocks, 1>(sums, d, me.w_hh + (block * 3 + 2) * H * L, 3 * H * L, H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Real> r = load_first(me.saved(t, b + m) + unit, n);
          const Vec<Real> old = load_first(me.h_prev(t, b + m) + unit, n);
          store_first(me.d_gates_of(t, b + m) + unit, sums[m][u] * old * (r * (splat<Real>(1) - r)), n);
          Real* c = me.carry + (b + m) * me.at.carry_row() + unit;
          store(c, fma(sums[m][u], r, load(c)));
        }
      }
    }
  };

  template <template <int> class Tile>
  void all_blocks(int64_t t, int64_t row_0, int64_t row_1, int64_t first_gate, int64_t last_gate, int64_t then) const {
    const int64_t n = row_1 - row_0;
    if (n <= 0) return;
    int64_t block = share.block_0;
    if (n == 1) {
      for (; block + 8 <= share.block_1; block += 8) Tile<8>{*this, t, row_0, block, first_gate, last_gate, then}.template run<1>(0);
      for (; block + 4 <= share.block_1; block += 4) Tile<4>{*this, t, row_0, block, first_gate, last_gate, then}.template run<1>(0);
    }
    while (block < share.block_1) {
      const int64_t rest = share.block_1 - block;
      if (rest >= 3 && rest != 4) {
        for_tiles<max_rows>(n, Tile<3>{*this, t, row_0, block, first_gate, last_gate, then}), block += 3;
      } else if (rest >= 2) {
        for_tiles<max_rows>(n, Tile<2>{*this, t, row_0, block, first_gate, last_gate, then}), block += 2;
      } else {
        for_tiles<max_rows>(n, Tile<1>{*this, t, row_0, block, first_gate, last_gate, then}), block += 1;
      }
    }
  }

  void recurrence() const {
    const auto end = [&](int64_t t) { return smaller(share.row_1, steps.active(t)); };
    const int64_t last = steps.time(chunk_last - 1);
    begin_rows(last, share.row_0, end(last));
    meet_by_units();
    for (int64_t step = chunk_last - 1; step >= chunk_first; --step) {
      const int64_t t = steps.time(step), next = step > chunk_first ? steps.time(step - 1) : -1;
      const int64_t here = end(t), both = next < 0 ? share.row_0 : smaller(here, end(next));
      if (!at.after) {
        all_blocks<Candidate>(t, share.row_0, here, 2, 3, -1);
        meet_by_units();
      }
      const int64_t gates = at.after ? 3 : 2;
      all_blocks<Product>(t, share.row_0, both, 0, gates, next);
      all_blocks<Product>(t, both < share.row_0 ? share.row_0 : both, here, 0, gates, -1);
      if (next >= 0) begin_rows(next, here < share.row_0 ? share.row_0 : here, end(next));
      meet_by_units();
    }
  }

  // A block of one vector's columns from each row of a row-major matrix: to[row lanes + lane].
  static void columns(Real* to, const Real* from, int64_t row, int64_t rows, int n) {
    for (int64_t k = 0; k < rows; ++k) store(to + k * L, load_first(from + k * row, n));
  }

  void pack_weights() const {
    const Weights<Real>& w = run.weights;
    const int64_t members = place.members, me = place.member, gate_rows = 3 * at.H;
    for (int64_t block = at.h_blocks * me / members; block < at.h_blocks * (me + 1) / members; ++block) {
      columns(w_hh + block * gate_rows * L, w.w_hh + block * L, w.w_hh_row, gate_rows, units(block));
    }
    if (!at.with_x) return;
    for (int64_t block = at.x_blocks * me / members; block < at.x_blocks * (me + 1) / members; ++block) {
      columns(w_ih + block * gate_rows * L, w.w_ih + block * L, w.w_ih_row, gate_rows,
              static_cast<int>(smaller<int64_t>(L, s.I - block * L)));
    }
  }

  void begin_carry() const {
    for (int64_t b = share.row_0; b < share.row_1; ++b) {
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        store(carry + b * at.carry_row() + block * L,
              run.d_h_n ? load_first(run.d_h_n + b * run.d_h_n_row + block * L, units(block)) : splat<Real>(0));
      }
    }
  }

  void end_carry() const {
    if (!run.d_h_0) return;
    for (int64_t b = share.row_0; b < share.row_1; ++b) {
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        store_first(run.d_h_0 + b * s.H + block * L, load(carry + b * at.carry_row() + block * L), units(block));
      }
    }
  }

  template <int Blocks>
  struct InputProduct {
    const BackwardMember& me;
    int64_t row_0, block;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t row = row_0 + first, H = me.at.H;
      const Real *d_rz[Rows], *d_n[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d_rz[m] = me.d_gates + (row + m) * me.at.gates * H;
        d_n[m] = d_rz[m] + (me.at.gates - 1) * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      const Real* w = me.w_ih + block * 3 * H * L;
      multiply<Real, Rows, Blocks, 1>(sums, d_rz, w, 3 * H * L, 2 * H);
      multiply<Real, Rows, Blocks, 1>(sums, d_n, w + 2 * H * L, 3 * H * L, H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t feature = (block + u) * L;
          store_first(me.run.d_x + (me.chunk_row + row + m) * me.s.I + feature, sums[m][u],
                      static_cast<int>(smaller<int64_t>(L, me.s.I - feature)));
        }
      }
    }
  };

  void inputs() const {
    const int64_t row_0 = chunk_size * place.member / place.members;
    const int64_t n = chunk_size * (place.member + 1) / place.members - row_0;
    for (int64_t block = 0; block < at.x_blocks;) {
      const int64_t rest = at.x_blocks - block;
      if (rest >= 3 && rest != 4) for_tiles<max_rows>(n, InputProduct<3>{*this, row_0, block}), block += 3;
      else if (rest >= 2) for_tiles<max_rows>(n, InputProduct<2>{*this, row_0, block}), block += 2;
      else for_tiles<max_rows>(n, InputProduct<1>{*this, row_0, block}), block += 1;
    }
  }

  // Both sides of the weights' gradients in the order in which they are multiplied; the biases' gradients on the way.
  void pack_sides(bool first_chunk) const {
    const int64_t H = at.H, rows = chunk_size, all = at.gates * at.panels;
    for (int64_t item = all * place.member / place.members; item < all * (place.member + 1) / place.members; ++item) {
      const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
      const int n = static_cast<int>(smaller<int64_t>(max_rows, H - unit));
      Real* to = left + item * rows * max_rows;
      const Real* from = d_gates + gate * H + unit;
      Real sum[max_rows] = {};
      for (int64_t k_0 = 0; k_0 < rows; k_0 += sum_terms) {
        Real part[max_rows] = {};
        for (int64_t k = k_0; k < smaller(k_0 + sum_terms, rows); ++k) {
          for (int m = 0; m < max_rows; ++m) {
            const Real value = m < n ? from[k * at.gates * H + m] : Real(0);
            to[k * max_rows + m] = value;
            part[m] += value;
          }
        }
        for (int m = 0; m < max_rows; ++m) sum[m] += part[m];
      }
      const bool of_x = gate < 2 || gate == at.gates - 1, of_h = gate < 3;
      for (int m = 0; m < n; ++m) {
        if (of_x && run.d_b_ih) add(run.d_b_ih + (gate < 2 ? gate : 2) * H + unit + m, sum[m], first_chunk);
        if (of_h && run.d_b_hh) add(run.d_b_hh + gate * H + unit + m, sum[m], first_chunk);
      }
    }
    int64_t k = 0;
    const int64_t k_0 = rows * place.member / place.members, k_1 = rows * (place.member + 1) / place.members;
    // time upwards: the order of the row numbers in d_gates
    const int64_t low = steps.reverse ? s.T - chunk_last : chunk_first;
    for (int64_t t = low; t < low + chunk_last - chunk_first; ++t) {
      for (int64_t b = 0; b < steps.active(t); ++b, ++k) {
        if (k < k_0 || k >= k_1) continue;
        Real* to = right + k * L;
        if (at.with_w_hh) {
          const Real* h = h_prev(t, b);
          for (int64_t block = 0; block < at.h_blocks; ++block, to += rows * L) {
            const Vec<Real> value = load_first(h + block * L, units(block));
            store(to, value);
            if (!at.after) {
              const Vec<Real> r = load_first(saved(t, b) + block * L, units(block));
              store(to + at.h_blocks * rows * L, r * value);
            }
          }
          if (!at.after) to += at.h_blocks * rows * L;
        }
        if (at.with_w_ih) {
          const Real* from = x(t, b);
          for (int64_t block = 0; block < at.x_blocks; ++block, to += rows * L) {
            store(to, load_first(from + block * L, static_cast<int>(smaller<int64_t>(L, s.I - block * L))));
          }
        }
      }
    }
  }

  static void add(Real* to, Real value, bool overwrite) { *to = overwrite ? value : *to + value; }

  // One panel of gate rows times `Blocks` blocks of columns, summed over the chunk's rows.
  template <int Blocks>
  void weight_tile(const Real* a, const Real* b, Real* to, int n_rows, int64_t to_row, int64_t column, int64_t width,
                   bool overwrite) const {
    Vec<Real> sums[max_rows][Blocks];
    UNROLL for (int m = 0; m < max_rows; ++m) {
      UNROLL for (int v = 0; v < Blocks; ++v) sums[m][v] = splat<Real>(0);
    }
    for (int64_t k_0 = 0; k_0 < chunk_size; k_0 += sum_terms) {
      const int64_t k_1 = smaller(k_0 + sum_terms, chunk_size);
      Vec<Real> part[max_rows][Blocks];
      UNROLL for (int m = 0; m < max_rows; ++m) {
        UNROLL for (int v = 0; v < Blocks; ++v) part[m][v] = splat<Real>(0);
      }
      for (int64_t k = k_0; k < k_1; ++k) {
        Vec<Real> bk[Blocks];
        UNROLL for (int v = 0; v < Blocks; ++v) bk[v] = load(b + (v * chunk_size + k) * L);
        UNROLL for (int m = 0; m < max_rows; ++m) {
          const Vec<Real> value = splat(a[k * max_rows + m]);
          UNROLL for (int v = 0; v < Blocks; ++v) part[m][v] = fma(value, bk[v], part[m][v]);
        }
      }
      UNROLL for (int m = 0; m < max_rows; ++m) {
        UNROLL for (int v = 0; v < Blocks; ++v) sums[m][v] = sums[m][v] + part[m][v];
      }
    }
    UNROLL for (int m = 0; m < max_rows; ++m) {
      if (m >= n_rows) continue;
      UNROLL for (int v = 0; v < Blocks; ++v) {
        const int n = static_cast<int>(smaller<int64_t>(L, width - column - v * L));
        Real* c = to + m * to_row + column + v * L;
        store_first(c, overwrite ? sums[m][v] : load_first(c, n) + sums[m][v], n);
      }
    }
  }

  // to [3H, width] += left^T right; `x_side`: whose candidate is that of x
  void weight_product(Real* to, int64_t width, const Real* b, const Real* b_of_candidate, bool x_side, bool overwrite) const {
    const int64_t blocks = ceil_div(width, L), all = 3 * at.panels;
    const int64_t item_0 = all * place.member / place.members, item_1 = all * (place.member + 1) / place.members;
    for (int64_t block = 0; block < blocks;) {
      const int64_t rest = blocks - block;
      const int64_t take = rest >= 3 && rest != 4 ? 3 : rest >= 2 ? 2 : 1;
      for (int64_t item = item_0; item < item_1; ++item) {
        const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
        const int64_t from = gate == 2 && x_side ? at.gates - 1 : gate;
        const Real* a = left + (from * at.panels + item % at.panels) * chunk_size * max_rows;
        const Real* right_side = (gate == 2 ? b_of_candidate : b) + block * chunk_size * L;
        Real* c = to + (gate * at.H + unit) * width;
        const int n = static_cast<int>(smaller<int64_t>(max_rows, at.H - unit));
        if (take == 3) weight_tile<3>(a, right_side, c, n, width, block * L, width, overwrite);
        else if (take == 2) weight_tile<2>(a, right_side, c, n, width, block * L, width, overwrite);
        else weight_tile<1>(a, right_side, c, n, width, block * L, width, overwrite);
      }
      block += take;
    }
  }

  void weights(bool first_chunk) const {
    const Real* b = right;
    if (at.with_w_hh) {
      const Real* candidate = at.after ? b : b + at.h_blocks * chunk_size * L;
      weight_product(run.d_w_hh, at.H, b, candidate, false, first_chunk);
      b = candidate + at.h_blocks * chunk_size * L;
    }
    if (at.with_w_ih) weight_product(run.d_w_ih, at.I, b, b, true, first_chunk);
  }

  void work() {
    pack_weights();
    begin_carry();
    meet();
    const bool sides = at.with_w_hh || at.with_w_ih || run.d_b_ih || run.d_b_hh;
    const int64_t length = chunk_steps(s);
    bool first_chunk = true;
    for (chunk_last = s.T; chunk_last > 0; chunk_last = chunk_first) {
      chunk_first = chunk_last > length ? chunk_last - length : 0;
      const int64_t low = steps.reverse ? s.T - chunk_last : chunk_first, high = low + chunk_last - chunk_first;
      chunk_row = steps.row(low, 0);
      chunk_size = steps.row(high - 1, steps.active(high - 1)) - chunk_row;
      recurrence();
      meet();
      if (at.with_x) inputs();
      if (sides) {
        pack_sides(first_chunk);
        meet();
        weights(first_chunk);
      }
      meet();
      first_chunk = false;
    }
    end_carry();
  }
};

template <class Real>
struct BackwardJob {
  const Sizes& sizes;
  const Backward<Real>* runs;
  int directions;
  const int64_t* offsets;
  Real* scratch;  // a part for each direction
  int64_t scratch_each;
  Barrier* barriers;  // one a direction

  static void work(void* self, int member, int members) {
    const auto& job = *static_cast<const BackwardJob*>(self);
    for (int direction = 0; direction < job.directions; ++direction) {
      const Place place = place_in(direction, job.directions, member, members);
      if (place.member >= 0) job.run(direction, place);
    }
  }

  void run(int direction, Place place) const {
    const Backward<Real>& one = runs[direction];
    const BackwardLayout<Real> at(sizes, one);
    Real* w_hh = scratch + direction * scratch_each;
    Real* w_ih = w_hh + at.w_hh_size();
    Real* carry = w_ih + at.w_ih_size();
    Real* left = carry + at.carry_size(sizes.B);
    Real* right = left + padded(at.left_size(), 16);
    Real* d_gates = right + at.right_size();
    BackwardMember<Real> me{sizes, one, {sizes, offsets, one.reverse}, at,
                            share_of(sizes, at.h_blocks, place.member, place.members), place, barriers[direction],
                            w_hh, w_ih, carry, left, right, d_gates, 0, 0, 0, 0};
    me.work();
  }
};

template <class Real>
int64_t backward_scratch(const Sizes& s, const Backward<Real>* runs, int directions) {
  int64_t most = 0;
  for (int i = 0; i < directions; ++i) {
    const int64_t size = BackwardLayout<Real>(s, runs[i]).size(s.B);
    if (size > most) most = size;
  }
  return padded(most, 16);
}

template <class Real>
int backward_threads(const Sizes& s, int directions) {
  const int64_t multiply_adds = directions * total_rows(s) * 3 * s.H * (2 * s.I + 2 * s.H);
  const int64_t most = smaller<int64_t>(s.threads, multiply_adds / 200000);
  return static_cast<int>(most < 1 ? 1 : most);
}

template <class Real>
void backward(const Sizes& sizes, const Backward<Real>* runs, int directions, int threads, const int64_t* offsets,
              Real* scratch, int64_t scratch_each) {
  Barrier barriers[2];
  BackwardJob<Real> job{sizes, runs, directions, offsets, scratch, scratch_each, barriers};
  run_team(threads, BackwardJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ the table

template <class Real>
void activations(const Real* x, Real* sigmoids, Real* tanhs, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes<Real>) {
    const int some = static_cast<int>(smaller<int64_t>(lanes<Real>, n - i));
    const Vec<Real> v = load_first(x + i, some);
    if (sigmoids) store_first(sigmoids + i, sigmoid<Real>(v), some);
    if (tanhs) store_first(tanhs + i, tanh<Real>(v), some);
  }
}

// Multiply-adds in registers alone, as many sums as the kernels keep; returns how many floating point operations.
double burn(int64_t rounds, float* out) {
  constexpr int n = max_rows * 3;
  Vec<float> sums[n];
  Vec<float> a = splat(1.0f), b = splat(1e-9f);
  UNROLL for (int i = 0; i < n; ++i) sums[i] = splat(static_cast<float>(i));
  for (int64_t k = 0; k < rounds; ++k) {
    asm volatile("" : "+m"(*out));  // keeps the loop, touches no register
    UNROLL for (int i = 0; i < n; ++i) sums[i] = fma(sums[i], a, b);
  }
  UNROLL for (int i = 0; i < n; ++i) out[0] += sums[i][0];
  return 2.0 * n * lanes<float> * static_cast<double>(rounds);
}

template <class Real>
constexpr KernelsOf<Real> kernels_of = {
    packed_size<Real>,     pack<Real>,             forward_scratch<Real>, forward_threads<Real>, forward<Real>,
    backward_scratch<Real>, backward_threads<Real>, backward<Real>,        activations<Real>,
};

}  // namespace TIDEGATE_ISA
}  // namespace tidegate
