// The kernels, once, for the instruction set of vec.h. Compiled again for each set with TIDEGATE_ISA as its namespace;
// nothing here comes from the standard library's templates, so that no function of one set leaks into another.
//
// Every sum over inputs or units runs through `multiply`: one accumulator a result, in the order k = 0, 1, 2 ..., put
// by after the same number of terms. So a result's bits do not depend on the size of the tile that it was computed in,
// and with that not on the rest of the batch, on chunks, or on threads.

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
//     bias_x: block, gate, lane: b_ir + b_hr, b_iz + b_hz, b_in     bias_hn: block, lane
//     gain_x, gain_h, with layer norm: block, gate, lane
template <class Real>
struct Layout {
  int64_t I, H, blocks;
  bool after, norm;
  Layout(int64_t I_, int64_t H_, Reset reset, bool norm_)
      : I(I_), H(H_), blocks(ceil_div(H_, lanes<Real>)), after(reset == Reset::after), norm(norm_) {}
  int64_t x_block() const { return I * 3 * lanes<Real>; }
  int64_t h_block() const { return H * (after ? 3 : 2) * lanes<Real>; }
  int64_t n_block() const { return H * lanes<Real>; }
  int64_t h_at() const { return blocks * x_block(); }
  int64_t n_at() const { return h_at() + blocks * h_block(); }
  int64_t bias_x_at() const { return n_at() + (after ? 0 : blocks * n_block()); }
  int64_t bias_hn_at() const { return bias_x_at() + blocks * 3 * lanes<Real>; }
  int64_t gain_x_at() const { return bias_hn_at() + blocks * lanes<Real>; }
  int64_t gain_h_at() const { return gain_x_at() + (norm ? blocks * 3 * lanes<Real> : 0); }
  int64_t size() const { return gain_h_at() + (norm ? blocks * 3 * lanes<Real> : 0); }
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
          const auto value = [&](const Real* from) { return lane < n && from ? from[i] : Real(0); };
          const Real of_x = value(w.b_ih), of_h = value(w.b_hh);
          const bool apart = gate == 2;  // r scales this one, and a trace shows it
          bias_x[gate * L] = apart ? of_x : of_x + of_h;
          if (apart) hn = of_h;
          if (at.norm) {
            to[at.gain_x_at() + (block * 3 + gate) * L + lane] = value(w.g_ih);
            to[at.gain_h_at() + (block * 3 + gate) * L + lane] = value(w.g_hh);
          }
        }
        to[at.bias_hn_at() + block * L + lane] = hn;
      }
    }
  }
};

template <class Real>
int64_t packed_size(int64_t I, int64_t H, Reset reset, bool norm) {
  return Layout<Real>(I, H, reset, norm).size();
}

template <class Real>
void pack(const Weights<Real>& weights, int64_t I, int64_t H, Reset reset, bool norm, int threads, Real* to) {
  PackJob<Real> job{&weights, Layout<Real>(I, H, reset, norm), to};
  run_team(3 * H * (I + H) < 100000 ? 1 : threads, PackJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ steps and rows

// The rows of a call in the order in which they are worked on: `step` 0 is the first one of the direction.
struct Steps {
  const Sizes& sizes;
  const Plan& plan;
  bool reverse;

  int64_t time(int64_t step) const { return reverse ? sizes.T - 1 - step : step; }
  int64_t active(int64_t t) const { return plan.offsets ? sizes.batch_sizes[t] : sizes.B; }
  int64_t dense(int64_t t, int64_t b) const { return (plan.offsets ? plan.offsets[t] : t * sizes.B) + b; }
  int64_t number(int64_t t, int64_t b) const { return plan.origin ? plan.origin[b] + t * plan.row_step : dense(t, b); }
  int64_t sequence(int64_t b) const { return plan.order ? plan.order[b] : b; }
  // Where row (t, b) of x or d_output lies.
  int64_t at(int64_t t, int64_t b, int64_t step, int64_t row) const {
    if (plan.origin) return t * step + plan.origin[b] * row;
    return plan.offsets ? (plan.offsets[t] + b) * row : t * step + b * row;
  }
  bool first(int64_t t, int64_t b) const {  // whether this is where the sequence at place b begins in this direction
    return reverse ? t == sizes.T - 1 || (plan.offsets && b >= sizes.batch_sizes[t + 1]) : t == 0;
  }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
};

// How a team splits one direction: by rows, without ever waiting for each other, where there are enough of them;
// by units, with a barrier a step, where a step is long enough to pay for it. A member's rows are row(0), row(1) ...:
// side by side, or, where sequences differ in length, dealt out like cards, so that everyone gets long and short ones.
struct Share {
  int64_t row_0, rows, stride, block_0, block_1;
  bool by_units;

  int64_t row(int64_t i) const { return row_0 + i * stride; }
  int64_t below(int64_t b) const {  // how many of these rows come before place b
    if (b <= row_0) return 0;
    const int64_t n = stride == 1 ? b - row_0 : ceil_div(b - row_0, stride);
    return n < rows ? n : rows;
  }
};

inline bool splits_units(const Sizes& s, int members) {
  if (members <= 1 || s.norm) return false;  // (layer norm needs all units of a row)
  // A barrier costs some tenths of a microsecond; this many multiply-adds a member take more than one.
  const bool long_steps = 3 * s.B * s.H * s.H / members >= 60000;
  return long_steps && s.B < members * (max_rows / 2 + 1);
}

inline Share share_rows(const Sizes& s, int64_t blocks, int member, int members) {
  if (s.batch_sizes && members > 1) {
    return {member, member < s.B ? ceil_div(s.B - member, members) : 0, members, 0, blocks, false};
  }
  const int64_t row_0 = s.B * member / members;
  return {row_0, s.B * (member + 1) / members - row_0, 1, 0, blocks, false};
}

inline Share share_of(const Sizes& s, int64_t blocks, int member, int members) {
  if (!splits_units(s, members)) return share_rows(s, blocks, member, members);
  return {0, s.B, 1, blocks * member / members, blocks * (member + 1) / members, true};
}

// What both ways know of a direction: where the values of a row lie.
template <class Real, class Run>
struct Member {
  static constexpr int L = lanes<Real>;
  const Sizes& s;
  const Run& run;
  Steps steps;
  Share share;

  int units(int64_t block) const { return static_cast<int>(smaller<int64_t>(L, s.H - block * L)); }
  const Real* x(int64_t t, int64_t b) const { return run.x + steps.at(t, b, run.x_step, run.x_row); }

  // Whether the state starts anew on the way to row (t, b); where its sequence begins, only if that row itself is marked.
  bool anew(int64_t t, int64_t b) const {
    if (!run.extras.resets) return false;
    if (steps.reverse) {
      if (steps.first(t, b)) return false;
      ++t;
    }
    return run.extras.resets[t * run.extras.resets_step + steps.sequence(b) * run.extras.resets_row] != 0;
  }
  const Real* h_prev(int64_t t, int64_t b) const {
    if (anew(t, b)) return run.extras.fresh + steps.sequence(b) * run.extras.fresh_row;
    if (steps.first(t, b)) return run.h_0 + steps.sequence(b) * run.h_0_row;
    return run.output + steps.number(steps.before(t), b) * run.output_row;
  }
  const Real* mask(int64_t b) const { return run.extras.mask ? run.extras.mask + steps.sequence(b) * s.H : nullptr; }

  // k, the part of the old state that a unit keeps whatever its gates say.
  Vec<Real> zone(const uint8_t* drawn, int64_t unit, int n) const {
    return drawn ? load_bytes<Real>(drawn + unit, n) : splat(run.extras.zone_rate);
  }
  bool zones() const { return run.extras.zone || run.extras.zone_rate != 0; }
};

// Layer norm of one row: n values whose lanes 0 ... of each block count, at from[block step + gate lanes + lane] for `gates`
// gates one after the other, become (v - mean) / sqrt(variance + 1e-5); returns the factor.
template <class Real>
inline Real normalise(Real* from, int64_t H, int64_t step, int gates) {
  constexpr int L = lanes<Real>;
  const auto units = [&](int64_t unit) { return static_cast<int>(smaller<int64_t>(L, H - unit)); };
  const auto sum_up = [](Vec<Real> v) {
    Real sum = 0;
    for (int lane = 0; lane < L; ++lane) sum += v[lane];
    return sum;
  };
  Vec<Real> sum = splat<Real>(0);
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) sum = sum + load_first(v, units(unit));
  }
  const Vec<Real> mean = splat(sum_up(sum) / static_cast<Real>(gates * H));
  sum = splat<Real>(0);
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) {
      const int n = units(unit);
      store_first(v, load_first(v, n) - mean, n);
      const Vec<Real> d = load_first(v, n);
      sum = fma(d, d, sum);
    }
  }
  const Real factor = 1 / square_root(sum_up(sum) / static_cast<Real>(gates * H) + Real(1e-5));
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) {
      const int n = units(unit);
      store_first(v, load_first(v, n) * splat(factor), n);
    }
  }
  return factor;
}

// Backwards through `normalise`: from the gradients d_y of gain * y, n values side by side as y and gain are, to those of v.
template <class Real>
inline void normalise_back(const Real* d_y, const Real* y, const Real* gain, Real factor, int64_t n, Real* to) {
  constexpr int L = lanes<Real>;
  Vec<Real> sum = splat<Real>(0), sum_y = splat<Real>(0);
  for (int64_t i = 0; i < n; i += L) {
    const int some = static_cast<int>(smaller<int64_t>(L, n - i));
    const Vec<Real> d = load_first(d_y + i, some) * load_first(gain + i, some);
    sum = sum + d;
    sum_y = fma(d, load_first(y + i, some), sum_y);
  }
  Real mean = 0, mean_y = 0;
  for (int lane = 0; lane < L; ++lane) mean += sum[lane], mean_y += sum_y[lane];
  mean /= static_cast<Real>(n), mean_y /= static_cast<Real>(n);
  for (int64_t i = 0; i < n; i += L) {
    const int some = static_cast<int>(smaller<int64_t>(L, n - i));
    const Vec<Real> d = load_first(d_y + i, some) * load_first(gain + i, some);
    const Vec<Real> v = d - splat(mean) - load_first(y + i, some) * splat(mean_y);
    store_first(to + i, v * splat(factor), some);
  }
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

// ------------------------------------------------------------------------------------------------ forwards

template <class Real>
struct ForwardJob {
  const Sizes& sizes;
  const Plan& plan;
  const Forward<Real>* runs;
  int directions;
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

// Where the values of one row of the step that is being worked on lie: worked out once, and not for each of its blocks.
template <class Real>
struct ForwardRow {
  const Real* old;     // h_prev
  const Real* factor;  // ... on its way into a product: masked, where there is recurrent dropout
  Real* to;            // h_t
  Real* saved;         // null where nothing is
  const uint8_t* zone;
};

// The scratch of a member, in the order in which it lies.
template <class Real>
struct ForwardLayout {
  int64_t gates_x;
  int64_t rh;        // Reset::before: r * m * h_prev [B, H], then z; by units, all members use the first one's
  int64_t masked;    // recurrent dropout: m * h_prev [B, H]
  int64_t products;  // layer norm: W_h h of a step, laid out like gates_x
  int64_t rows;      // where the values of each row of a step lie: a ForwardRow each
  explicit ForwardLayout(const Sizes& s) {
    const int64_t state = s.B * padded(s.H, lanes<Real>), row = gates_x_row<Real>(ceil_div(s.H, lanes<Real>));
    const int64_t step = s.B * row, all = s.T * step;
    rows = padded(ceil_div(s.B * static_cast<int64_t>(sizeof(ForwardRow<Real>)), sizeof(Real)), 16);
    rh = s.reset == Reset::before ? padded(2 * state, 16) : 0;
    masked = padded(state, 16);
    products = s.norm ? padded(step, 16) : 0;
    gates_x = padded(all < gates_x_values ? all : step < gates_x_values ? gates_x_values : step, 16);
  }
  int64_t size() const { return padded(rows + rh + masked + products + gates_x, 16); }
};

template <class Real>
int64_t forward_scratch(const Sizes& s) {
  return ForwardLayout<Real>(s).size();
}

// One direction as one member of its team does it.
template <class Real>
struct ForwardMember : Member<Real, Forward<Real>> {
  using Member<Real, Forward<Real>>::s, Member<Real, Forward<Real>>::run, Member<Real, Forward<Real>>::steps;
  using Member<Real, Forward<Real>>::share, Member<Real, Forward<Real>>::units, Member<Real, Forward<Real>>::L;
  Layout<Real> at;
  ForwardRow<Real>* rows;
  Real *rh, *masked, *products, *gates_x;
  int64_t columns;  // of gates_x and products, a row
  int64_t turn;  // even or odd: where a lone row begins to read the weights
  int64_t first_saved;  // where the output is known and only `saved` is wanted: the row number of its first row; else -1

  const Real* weights() const { return run.weights->memory; }
  bool again() const { return first_saved >= 0; }
  Real* h_t(int64_t t, int64_t b) const { return run.output + steps.number(t, b) * run.output_row; }
  // Computed again, only a chunk's rows have a place, in the order of their numbers.
  int64_t saved_row(int64_t t, int64_t b) const { return again() ? steps.dense(t, b) - first_saved : steps.number(t, b); }
  Real* saved(int64_t t, int64_t b) const { return run.saved + saved_row(t, b) * slots(at.norm) * at.H; }
  Real* row_of(Real* matrix, int64_t i, int64_t block) const {
    return matrix + i * columns + (block - share.block_0) * 3 * L;
  }
  Real* gates_x_of(int64_t step, int64_t i, int64_t block) const { return row_of(gates_x, step * share.rows + i, block); }
  int64_t h_padded() const { return padded(s.H, L); }
  int64_t active_rows(int64_t t) const { return share.below(steps.active(t)); }

  // What x has to say to the gates, for all rows of steps first ... last - 1 at once.
  template <int Blocks>
  struct Project {
    const ForwardMember& me;
    int64_t first, last, block;
    mutable int64_t step, i, n;  // the next row, and how many there are in its step

    void next() const {
      if (++i < n) return;
      for (i = 0; ++step < last;) {
        n = me.active_rows(me.steps.time(step));
        if (n > 0) return;
      }
    }
    template <int Rows>
    void run(int64_t) const {
      const Real* a[Rows];
      Real* to[Rows];
      Vec<Real> sums[Rows][Blocks * 3];
      const Real* bias = me.weights() + me.at.bias_x_at() + block * 3 * L;
      const bool norm = me.at.norm;
      UNROLL for (int m = 0; m < Rows; ++m) {
        a[m] = me.x(me.steps.time(step), me.share.row(i));
        to[m] = me.gates_x_of(step - first, i, block);
        UNROLL for (int v = 0; v < Blocks * 3; ++v) sums[m][v] = norm ? splat<Real>(0) : load(bias + v * L);
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
    Project<Blocks> tile{*this, first, last, block, first - 1, 0, 0};
    tile.next();
    return tile;
  }

  void project(int64_t first, int64_t last) const {
    int64_t n = 0;
    for (int64_t step = first; step < last; ++step) n += active_rows(steps.time(step));
    for (int64_t block = share.block_0; block < share.block_1; ++block) {
      for_tiles<max_rows>(n, project_of<1>(first, last, block));
    }
    if (!at.norm) return;
    for (int64_t step = first; step < last; ++step) {
      const int64_t t = steps.time(step);
      for (int64_t i = 0; i < active_rows(t); ++i) normalise_x(t, i, gates_x_of(step - first, i, 0));
    }
  }

  // The two normalised vectors, (r, z) and n, of one row of products in place. Saved from slot `slot` on.
  void normalise_row(int64_t t, int64_t i, Real* row, int gate_0, int gates, int slot, int factor_at) const {
    const Real factor = normalise(row + gate_0 * L, s.H, 3 * L, gates);
    if (!run.saved) return;
    const int64_t b = share.row(i);
    run.norms[saved_row(t, b) * 4 + factor_at] = factor;
    for (int gate = gate_0; gate < gate_0 + gates; ++gate) {
      for (int64_t block = 0; block < at.blocks; ++block) {
        store_first(saved(t, b) + (slot + gate) * at.H + block * L, load(row + (block * 3 + gate) * L), units(block));
      }
    }
  }

  void normalise_x(int64_t t, int64_t i, Real* row) const {
    normalise_row(t, i, row, 0, 2, 7, 2);
    normalise_row(t, i, row, 2, 1, 7, 3);
    const Real *gain = weights() + at.gain_x_at(), *bias = weights() + at.bias_x_at();
    for (int64_t v = 0; v < at.blocks * 3 * L; v += L) store(row + v, fma(load(row + v), load(gain + v), load(bias + v)));
  }

  // The new state of one row's block, and what backward wants to know but for r.
  // zones: asked once by the caller, as every store could have changed it for all that the compiler knows.
  void finish(const ForwardRow<Real>& row, int64_t block, bool zones, Vec<Real> z, Vec<Real> candidate, Vec<Real> h_n) const {
    const int64_t unit = block * L;
    const int n = units(block);
    if (row.saved) {
      Real* to = row.saved + unit;
      store_first(to + at.H, z, n);
      store_first(to + 2 * at.H, candidate, n);
      store_first(to + 3 * at.H, h_n, n);
      if (again()) return;
    }
    if (zones) z = fma(this->zone(row.zone, unit, n), splat<Real>(1) - z, z);  // k of the rest is kept as well
    store_first(row.to + unit, fma(z, load_first(row.old + unit, n), (splat<Real>(1) - z) * candidate), n);
  }
  void save_r(const ForwardRow<Real>& row, int64_t block, Vec<Real> r) const {
    if (row.saved) store_first(row.saved + block * L, r, units(block));
  }

  // Find the rows of step t, and mask their states where there is recurrent dropout.
  void begin_step(int64_t t) const {
    const Extras<Real>& extras = run.extras;
    for (int64_t i = 0; i < active_rows(t); ++i) {
      const int64_t b = share.row(i);
      ForwardRow<Real>& row = rows[i];
      row.old = row.factor = this->h_prev(t, b);
      row.to = h_t(t, b);
      row.saved = run.saved ? saved(t, b) : nullptr;
      row.zone = extras.zone ? extras.zone + steps.number(t, b) * extras.zone_row : nullptr;
      if (!extras.mask) continue;
      const Real* m = this->mask(b);
      Real* to = masked + i * h_padded();
      for (int64_t unit = 0; unit < s.H; unit += L) {
        const int n = units(unit / L);
        store(to + unit, load_first(row.old + unit, n) * load_first(m + unit, n));
      }
      row.factor = to;
    }
  }

  // One step of Rows rows and Blocks blocks of units: the product with h_prev, and the gates on its registers.
  template <int Blocks>
  struct After {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      const Real* h[Rows];
      Vec<Real> sums[Rows][Blocks * 3];
      const Real* bias = me.weights() + me.at.bias_hn_at() + block * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rows[first + m].factor;
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, first + m, block + u);
          sums[m][3 * u] = load(x);
          sums[m][3 * u + 1] = load(x + L);
          sums[m][3 * u + 2] = load(bias + u * L);
        }
      }
      multiply<Real, Rows, Blocks, 3>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
                                      me.at.h_block(), me.at.H);
      const bool zones = me.zones();
      // One gate of all rows, then the next gate: a row's own three wait for each other, those of different rows don't.
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][3 * u] = sigmoid<Real>(sums[m][3 * u]);
      }
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][3 * u + 1] = sigmoid<Real>(sums[m][3 * u + 1]);
      }
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Vec<Real> r = sums[m][3 * u], z = sums[m][3 * u + 1], h_n = sums[m][3 * u + 2];
          const Vec<Real> x_n = load(me.gates_x_of(step, first + m, block + u) + 2 * L);
          me.save_r(me.rows[first + m], block + u, r);
          me.finish(me.rows[first + m], block + u, zones, z, tanh<Real>(fma(r, h_n, x_n)), h_n);
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
      const Real* h[Rows];
      Vec<Real> sums[Rows][Blocks * 2];
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rows[first + m].factor;
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, first + m, block + u);
          sums[m][2 * u] = load(x);
          sums[m][2 * u + 1] = load(x + L);
        }
      }
      multiply<Real, Rows, Blocks, 2>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
                                      me.at.h_block(), me.at.H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          me.begin(first + m, block + u, sigmoid<Real>(sums[m][2 * u]), sigmoid<Real>(sums[m][2 * u + 1]));
        }
      }
    }
  };

  // r * h_prev for the second product, and z for after it.
  void begin(int64_t i, int64_t block, Vec<Real> r, Vec<Real> z) const {
    const int64_t unit = block * L;
    Real* to = rh + i * h_padded() + unit;
    store(to, r * load_first(rows[i].factor + unit, units(block)));
    store(to + s.B * h_padded(), z);
    save_r(rows[i], block, r);
  }
  // ... and the rest of the step, after it.
  void end(int64_t i, int64_t block, Vec<Real> x_n, Vec<Real> h_n) const {
    finish(rows[i], block, this->zones(), load(rh + (s.B + i) * h_padded() + block * L), tanh<Real>(x_n + h_n), h_n);
  }

  template <int Blocks>
  struct BeforeCandidate {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      const Real* h[Rows];
      Vec<Real> sums[Rows][Blocks];
      const Real* bias = me.weights() + me.at.bias_hn_at() + block * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rh + (first + m) * me.h_padded();
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = load(bias + u * L);
      }
      multiply<Real, Rows, Blocks, 1>(sums, h, me.weights() + me.at.n_at() + block * me.at.n_block(),
                                      me.at.n_block(), me.at.H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          me.end(first + m, block + u, load(me.gates_x_of(step, first + m, block + u) + 2 * L), sums[m][u]);
        }
      }
    }
  };

  // Layer norm needs a product whole before any gate of it: it goes through memory.
  template <int Blocks>
  struct ProductAfter {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      me.template product<Rows, Blocks, 3>(first, block, 0, me.at.h_at(), me.at.h_block(), [&](int64_t i) { return me.rows[i].factor; });
    }
  };
  template <int Blocks>
  struct ProductBeforeGates {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      me.template product<Rows, Blocks, 2>(first, block, 0, me.at.h_at(), me.at.h_block(), [&](int64_t i) { return me.rows[i].factor; });
    }
  };
  template <int Blocks>
  struct ProductBeforeCandidate {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    void run(int64_t first) const {
      me.template product<Rows, Blocks, 1>(first, block, 2, me.at.n_at(), me.at.n_block(),
                                           [&](int64_t i) { return me.rh + i * me.h_padded(); });
    }
  };

  template <int Rows, int Blocks, int Gates, class From>
  void product(int64_t first, int64_t block, int gate_0, int64_t w_at, int64_t w_block, const From& from) const {
    const Real* h[Rows];
    Vec<Real> sums[Rows][Blocks * Gates];
    UNROLL for (int m = 0; m < Rows; ++m) {
      h[m] = from(first + m);
      UNROLL for (int v = 0; v < Blocks * Gates; ++v) sums[m][v] = splat<Real>(0);
    }
    multiply<Real, Rows, Blocks, Gates>(sums, h, weights() + w_at + block * w_block, w_block, at.H);
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Gates; ++v) {
        store(row_of(products, first + m, block + v / Gates) + (gate_0 + v % Gates) * L, sums[m][v]);
      }
    }
  }

  void step_with_norm(int64_t t, int64_t step) const {
    const int64_t n = active_rows(t);
    const Real *gain = weights() + at.gain_h_at(), *bias = weights() + at.bias_hn_at();
    if (at.after) all_blocks<ProductAfter>(t, step);
    else all_blocks<ProductBeforeGates>(t, step);
    for (int64_t i = 0; i < n; ++i) {
      Real* row = row_of(products, i, 0);
      normalise_row(t, i, row, 0, 2, 4, 0);
      if (at.after) normalise_row(t, i, row, 2, 1, 4, 1);
      for (int64_t block = 0; block < at.blocks; ++block) {
        const Real *of_x = gates_x_of(step, i, block), *of_h = row + block * 3 * L, *g = gain + block * 3 * L;
        const Vec<Real> r = sigmoid<Real>(fma(load(of_h), load(g), load(of_x)));
        const Vec<Real> z = sigmoid<Real>(fma(load(of_h + L), load(g + L), load(of_x + L)));
        if (at.after) {
          const Vec<Real> h_n = fma(load(of_h + 2 * L), load(g + 2 * L), load(bias + block * L));
          save_r(rows[i], block, r);
          finish(rows[i], block, this->zones(), z, tanh<Real>(fma(r, h_n, load(of_x + 2 * L))), h_n);
        } else {
          begin(i, block, r, z);
        }
      }
    }
    if (at.after) return;
    all_blocks<ProductBeforeCandidate>(t, step);
    for (int64_t i = 0; i < n; ++i) {
      Real* row = row_of(products, i, 0);
      normalise_row(t, i, row, 2, 1, 4, 1);
      for (int64_t block = 0; block < at.blocks; ++block) {
        const int64_t v = (block * 3 + 2) * L;
        end(i, block, load(gates_x_of(step, i, block) + 2 * L), fma(load(row + v), load(gain + v), load(bias + block * L)));
      }
    }
  }

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
      begin_step(t);
      if (at.norm) {
        step_with_norm(t, step - first);
      } else if (at.after) {
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
    return last - first == 1 && at.after && !at.norm && (n == 1 || n == 2);
  }

  void step_alone(int64_t first, Barrier& barrier, int members) const {
    const int64_t t = steps.time(first), n = active_rows(t);
    begin_step(t);
    if (n == 1) few_blocks<After, 4>(t, 0, n, first);
    else few_blocks<After, 2>(t, 0, n, first);
    barrier.wait(share.by_units ? members : 1);
  }

  // x's part and the steps themselves, so many at a time that what lies between stays in a near cache.
  void stretch(int64_t first, int64_t last, Barrier& barrier, int members) {
    const int64_t values = share.rows * columns;
    const int64_t chunk = values && values < gates_x_values ? gates_x_values / values : 1;
    for (; first < last; first += chunk) {
      const int64_t end = smaller(first + chunk, last);
      if (alone(first, end)) {
        step_alone(first, barrier, members);
        ++turn;
      } else {
        project(first, end);
        steps_of(first, end, barrier, members);
      }
    }
  }

  void last_states() const {
    if (!run.h_n) return;
    for (int64_t i = 0; i < share.rows; ++i) {
      const int64_t b = share.row(i), sequence = steps.sequence(b);
      const Real* from = run.h_0 + sequence * run.h_0_row;
      int64_t t = s.T - 1;
      while (t >= 0 && steps.active(t) <= b) --t;  // its last step
      if (t >= 0) from = h_t(steps.reverse ? 0 : t, b);
      const int64_t begin = share.block_0 * L, end = smaller(share.block_1 * L, s.H);
      Real* to = run.h_n + sequence * s.H;
      for (int64_t unit = begin; unit < end; ++unit) to[unit] = from[unit];
    }
  }
};

template <class Real>
ForwardMember<Real> forward_member(const Sizes& sizes, const Plan& plan, const Forward<Real>& run, const Share& share,
                                   Real* mine, Real* first_one, int64_t first_saved) {
  const ForwardLayout<Real> lies(sizes);
  const int64_t turn = run.weights->turn.load(std::memory_order_relaxed);
  return {{sizes, run, {sizes, plan, run.reverse}, share},
          Layout<Real>(sizes.I, sizes.H, sizes.reset, sizes.norm),
          reinterpret_cast<ForwardRow<Real>*>(mine + lies.gates_x + lies.rh + lies.masked + lies.products),
          (share.by_units ? first_one : mine) + lies.gates_x,
          mine + lies.gates_x + lies.rh,
          mine + lies.gates_x + lies.rh + lies.masked,
          mine,
          gates_x_row<Real>(share.block_1 - share.block_0),
          turn,
          first_saved};
}

template <class Real>
void ForwardJob<Real>::run(int direction, Place place, Real* mine) const {
  const Share share = share_of(sizes, ceil_div(sizes.H, lanes<Real>), place.member, place.members);
  Real* first_one = scratch + (directions == 2 ? direction : 0) * scratch_each;
  auto me = forward_member(sizes, plan, runs[direction], share, mine, first_one, int64_t{-1});
  me.stretch(0, sizes.T, barriers[direction], place.members);
  me.last_states();
}

template <class Real>
int forward_threads(const Sizes& s, const Plan& plan, int directions) {
  return useful_threads(s, directions, directions * plan.rows * 3 * s.H * (s.I + s.H));
}

template <class Real>
void forward(const Sizes& sizes, const Plan& plan, const Forward<Real>* runs, int directions, int threads, Real* scratch,
             int64_t scratch_each) {
  Barrier barriers[2];
  ForwardJob<Real> job{sizes, plan, runs, directions, scratch, scratch_each, barriers};
  run_team(threads, ForwardJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ backwards
//
// With d_h the whole gradient of h_t, and a = the value inside σ or tanh:
//
//     d_n_a = d_h (1 - z) (1 - n²)        d_z_a = d_h (h_prev - n) z (1 - z)        carry = d_h z
//     after:   d_h_n = d_n_a r            d_r_a = d_n_a h_n r (1 - r)        (h_n = W_hn h_prev + b_hn)
//     before:  d_h_n = d_n_a              d_r_a = d_rh h_prev r (1 - r)      with d_rh = d_h_n W_hn
//              carry += d_rh r
//     carry += [d_r_a d_z_a d_h_n] W_hh, but for W_hn where the reset is before
//
// and carry, with d_output of the step before, is the d_h of the step before. Zoneout's k puts z + k (1 - z) for z but
// where z is differentiated, (1 - k) z (1 - z); recurrent dropout's mask falls on h_prev and on what comes back to it from
// a product. With layer norm the gradients go back through both normalisations first: d_a becomes d_p of h and of x.
//
// The gradients of a chunk of steps lie in d_gates, a row for each of theirs: r, z, h_n, n_a, H each, and with layer norm
// six more, the d_p of h and then of x. The weights' gradients are one matrix product a chunk. The length of a chunk
// depends on the batch alone, so that the sums are the same on any number of threads.

constexpr int64_t chunk_rows = 256;

struct FromGates {  // columns of a matrix, for the gates r, z, n
  int64_t gate[3];
};

inline int64_t chunk_steps(const Sizes& s) { return s.B && s.B < chunk_rows ? chunk_rows / s.B : 1; }

// Where the values of one row of a step lie.
template <class Real>
struct BackwardRow {
  const Real *d_output, *saved, *old, *d_own, *mask;  // each null where there is none
  const uint8_t* zone;
  Real *d_gates, *carry, *d_fresh;
  bool anew;  // the state before it is a fresh one
};

// ... for the step that is worked on and the one that follows it.
template <class Real>
inline int64_t backward_rows(const Sizes& s) {
  return padded(ceil_div(2 * s.B * static_cast<int64_t>(sizeof(BackwardRow<Real>)), sizeof(Real)), 16);
}

template <class Real>
struct BackwardLayout {
  static constexpr int L = lanes<Real>;
  int64_t H, I, h_blocks, x_blocks, panels, rows;
  bool after, norm, again, with_x, with_w_ih, with_w_hh;
  BackwardLayout(const Sizes& s, const Backward<Real>& run)
      : H(s.H), I(s.I), h_blocks(ceil_div(H, L)), x_blocks(ceil_div(I, L)), panels(ceil_div(H, max_rows)),
        rows(smaller(chunk_steps(s), s.T) * s.B), after(s.reset == Reset::after), norm(s.norm), again(!run.saved),
        with_x(run.d_x), with_w_ih(run.d_w_ih), with_w_hh(run.d_w_hh) {}
  int64_t carry_row() const { return h_blocks * L; }
  // Columns of d_gates, H each: those of W_hh's three gates, of W_ih's first two, and of its last.
  int64_t columns() const { return norm ? 10 : 4; }
  int64_t h_column() const { return norm ? 4 : 0; }
  int64_t x_column() const { return norm ? 7 : 0; }
  int64_t x_n_column() const { return norm ? 9 : 3; }
  // Those that go into the weights' gradients, in `left`.
  int64_t left_0() const { return norm ? 4 : 0; }
  int64_t lefts() const { return columns() - left_0(); }
  // in the order in which they lie
  int64_t w_hh_size() const { return h_blocks * 3 * H * L; }                       // block of units, gate row, lane
  int64_t w_ih_size() const { return with_x ? x_blocks * 3 * H * L : 0; }          // block of features, gate row, lane
  int64_t carry_size(int64_t B) const { return padded(B * carry_row(), 16); }
  int64_t left_size() const { return padded(lefts() * panels * rows * max_rows, 16); }  // column, panel, row, unit in panel
  int64_t right_blocks() const {
    return (with_w_hh ? h_blocks * (after ? 1 : 2) : 0) + (with_w_ih ? x_blocks : 0);
  }
  int64_t right_size() const { return right_blocks() * rows * L; }                 // block, row, lane
  int64_t d_gates_size() const { return padded(rows * columns() * H, 16); }
  int64_t saved_size() const { return again ? padded(rows * slots(norm) * H, 16) : 0; }
  int64_t norms_size() const { return again && norm ? padded(rows * 4, 16) : 0; }
  int64_t size(int64_t B) const {
    return w_hh_size() + w_ih_size() + carry_size(B) + left_size() + right_size() + d_gates_size() + saved_size() + norms_size();
  }
};

template <class Real>
struct BackwardMember : Member<Real, Backward<Real>> {
  using Member<Real, Backward<Real>>::s, Member<Real, Backward<Real>>::run, Member<Real, Backward<Real>>::steps;
  using Member<Real, Backward<Real>>::share, Member<Real, Backward<Real>>::units, Member<Real, Backward<Real>>::L;
  using Member<Real, Backward<Real>>::h_prev, Member<Real, Backward<Real>>::x;
  const Plan& plan;
  BackwardLayout<Real> at;
  Place place;
  Barrier& barrier;
  Real *w_hh, *w_ih, *carry, *left, *right, *d_gates, *saved_again, *norms_again;
  BackwardRow<Real> *rows, *next_rows;  // those of this member
  Real* again_scratch;  // of this member
  int64_t chunk_first;  // the steps of this chunk: chunk_first ... chunk_last - 1, worked on from the last
  int64_t chunk_last;
  int64_t chunk_row;    // the lowest of its rows
  int64_t chunk_size;   // its rows

  void meet() const { barrier.wait(place.members); }
  void meet_by_units() const { if (share.by_units) barrier.wait(place.members); }

  int64_t row_in_chunk(int64_t t, int64_t b) const { return steps.dense(t, b) - chunk_row; }
  Real* d_gates_of(int64_t t, int64_t b) const { return d_gates + row_in_chunk(t, b) * at.columns() * at.H; }
  const Real* saved(int64_t t, int64_t b) const {
    return (at.again ? saved_again + row_in_chunk(t, b) * slots(at.norm) * at.H
                     : run.saved + steps.number(t, b) * slots(at.norm) * at.H);
  }
  const Real* norms(int64_t t, int64_t b) const {
    return at.again ? norms_again + row_in_chunk(t, b) * 4 : run.norms + steps.number(t, b) * 4;
  }
  static Vec<Real> masked(const BackwardRow<Real>& row, int64_t unit, int n, Vec<Real> v) {
    return row.mask ? v * load_first(row.mask + unit, n) : v;
  }

  void find_rows(int64_t t, BackwardRow<Real>* found) const {
    const Extras<Real>& extras = run.extras;
    const int64_t n = share.below(steps.active(t));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = share.row(i);
      BackwardRow<Real>& row = found[i];
      row.d_output = run.d_output ? run.d_output + steps.at(t, b, run.d_output_step, run.d_output_row) : nullptr;
      row.saved = saved(t, b);
      row.old = h_prev(t, b);
      row.d_own = run.d_saved ? run.d_saved + steps.number(t, b) * 4 * at.H : nullptr;
      row.mask = this->mask(b);
      row.zone = extras.zone ? extras.zone + steps.number(t, b) * extras.zone_row : nullptr;
      row.d_gates = d_gates_of(t, b);
      row.carry = carry + b * at.carry_row();
      row.d_fresh = run.d_fresh ? run.d_fresh + steps.sequence(b) * at.H : nullptr;
      row.anew = this->anew(t, b);
    }
  }

  // d_h of these units, all of it but d_output, becomes the gradients of the gates; returns d_h z.
  Vec<Real> gates(const BackwardRow<Real>& row, int64_t block, bool zones, Vec<Real> d_h) const {
    const int64_t unit = block * L, H = at.H;
    const int n = units(block);
    if (row.d_output) d_h = d_h + load_first(row.d_output + unit, n);
    const Real* from = row.saved + unit;
    const Real* d_own = row.d_own ? row.d_own + unit : nullptr;
    Real* to = row.d_gates + unit;
    const Vec<Real> one = splat<Real>(1);
    const Vec<Real> r = load_first(from, n), z = load_first(from + H, n), candidate = load_first(from + 2 * H, n);
    const Vec<Real> old = load_first(row.old + unit, n);
    Vec<Real> d_n = d_h * (one - z), d_z = d_h * (old - candidate), keep = z;
    if (zones) {
      const Vec<Real> k = this->zone(row.zone, unit, n), rest = one - k;
      d_n = d_n * rest, d_z = d_z * rest, keep = fma(k, one - z, z);
    }
    if (d_own) d_n = d_n + load_first(d_own + 2 * H, n), d_z = d_z + load_first(d_own + H, n);
    d_n = d_n * ((one - candidate) * (one + candidate));
    store_first(to + H, d_z * (z * (one - z)), n);
    store_first(to + 3 * H, d_n, n);
    Vec<Real> d_r = d_n, d_h_n = d_n;  // Reset::before: d_r has to wait for the product with d_h_n
    if (at.after) {
      d_r = d_n * load_first(from + 3 * H, n), d_h_n = d_n * r;
      if (d_own) d_r = d_r + load_first(d_own, n);
    }
    if (d_own) d_h_n = d_h_n + load_first(d_own + 3 * H, n);
    store_first(to, d_r * (r * (one - r)), n);
    store_first(to + 2 * H, d_h_n, n);
    return d_h * keep;
  }

  // Those of these rows i_0 ... i_1 - 1 need no product first: those of the chunk's last step, and those whose sequence
  // ends here.
  void begin_rows(const BackwardRow<Real>* found, int64_t i_0, int64_t i_1) const {
    for (int64_t i = i_0; i < i_1; ++i) {
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        Real* c = found[i].carry + block * L;
        store(c, gates(found[i], block, this->zones(), load(c)));
      }
    }
  }

  // What has come back to the state before a row: where it was a fresh one, the gradient ends there.
  Vec<Real> settle(const BackwardRow<Real>& row, int64_t block, Vec<Real> value) const {
    if (!row.anew) return value;
    if (row.d_fresh) {
      Real* to = row.d_fresh + block * L;
      store_first(to, load_first(to, units(block)) + value, units(block));
    }
    return splat<Real>(0);
  }

  // carry += d_gates[first gate ... last gate] W_hh; `then`: straight on to the gates of the step before.
  template <int Blocks>
  struct Product {
    const BackwardMember& me;
    int64_t i_0, block, first_gate, last_gate;
    bool then;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t H = me.at.H;
      const BackwardRow<Real>*row = me.rows + i_0 + first, *next = me.next_rows + i_0 + first;
      const bool mask = me.run.extras.mask, zones = me.zones();
      const Real* d[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = row[m].d_gates + (me.at.h_column() + first_gate) * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = mask ? splat<Real>(0) : load(row[m].carry + (block + u) * L);
      }
      multiply<Real, Rows, Blocks, 1>(sums, d, me.w_hh + (block * 3 + first_gate) * H * L,
                                      3 * H * L, (last_gate - first_gate) * H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          Real* c = row[m].carry + (block + u) * L;
          Vec<Real> value = sums[m][u];
          if (mask) value = masked(row[m], (block + u) * L, me.units(block + u), value) + load(c);
          value = me.settle(row[m], block + u, value);
          if (then) value = me.gates(next[m], block + u, zones, value);
          store(c, value);
        }
      }
    }
  };

  // Reset::before: d_rh = d_h_n W_hn, and with it d_r and its part of carry.
  template <int Blocks>
  struct Candidate {
    const BackwardMember& me;
    int64_t i_0, block, first_gate, last_gate;
    bool then;

    template <int Rows>
    void run(int64_t first) const {
      const int64_t H = me.at.H;
      const BackwardRow<Real>* row = me.rows + i_0 + first;
      const Real* d[Rows];
      Vec<Real> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = row[m].d_gates + (me.at.h_column() + 2) * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      multiply<Real, Rows, Blocks, 1>(sums, d, me.w_hh + (block * 3 + 2) * H * L, 3 * H * L, H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Real> r = load_first(row[m].saved + unit, n);
          Vec<Real> d_r = sums[m][u] * masked(row[m], unit, n, load_first(row[m].old + unit, n));
          if (row[m].d_own) d_r = d_r + load_first(row[m].d_own + unit, n);
          store_first(row[m].d_gates + unit, d_r * (r * (splat<Real>(1) - r)), n);
          store(row[m].carry + unit, load(row[m].carry + unit) + masked(row[m], unit, n, sums[m][u] * r));
        }
      }
    }
  };

  template <template <int> class Tile>
  void all_blocks(int64_t i_0, int64_t i_1, int64_t first_gate, int64_t last_gate, bool then) const {
    const int64_t n = i_1 - i_0;
    if (n <= 0) return;
    int64_t block = share.block_0;
    if (n == 1) {
      for (; block + 8 <= share.block_1; block += 8) Tile<8>{*this, i_0, block, first_gate, last_gate, then}.template run<1>(0);
      for (; block + 4 <= share.block_1; block += 4) Tile<4>{*this, i_0, block, first_gate, last_gate, then}.template run<1>(0);
    }
    while (block < share.block_1) {
      const int64_t rest = share.block_1 - block;
      if (rest >= 3 && rest != 4) {
        for_tiles<max_rows>(n, Tile<3>{*this, i_0, block, first_gate, last_gate, then}), block += 3;
      } else if (rest >= 2) {
        for_tiles<max_rows>(n, Tile<2>{*this, i_0, block, first_gate, last_gate, then}), block += 2;
      } else {
        for_tiles<max_rows>(n, Tile<1>{*this, i_0, block, first_gate, last_gate, then}), block += 1;
      }
    }
  }

  // Layer norm, one row: d_a becomes d_p. of_h: of W_h(rz) h or W_hn h; otherwise of both sums of x.
  void back_h(int64_t t, int64_t i_0, int64_t i_1, bool candidate) const {
    const int64_t H = at.H, from = candidate ? 2 : 0;
    for (int64_t i = i_0; i < i_1; ++i) {
      const int64_t b = share.row(i);
      Real* d = d_gates_of(t, b);
      normalise_back(d + from * H, saved(t, b) + (4 + from) * H, run.weights.g_hh + from * H, norms(t, b)[candidate ? 1 : 0],
                     candidate ? H : 2 * H, d + (4 + from) * H);
    }
  }
  void back_x(int64_t t, int64_t b) const {
    const int64_t H = at.H;
    Real* d = d_gates_of(t, b);
    normalise_back(d, saved(t, b) + 7 * H, run.weights.g_ih, norms(t, b)[2], 2 * H, d + 7 * H);
    normalise_back(d + 3 * H, saved(t, b) + 9 * H, run.weights.g_ih + 2 * H, norms(t, b)[3], H, d + 9 * H);
  }

  void recurrence() {
    const auto end = [&](int64_t t) { return share.below(steps.active(t)); };
    const int64_t last = steps.time(chunk_last - 1);
    find_rows(last, rows);
    begin_rows(rows, 0, end(last));
    meet_by_units();
    for (int64_t step = chunk_last - 1; step >= chunk_first; --step) {
      const int64_t t = steps.time(step), next = step > chunk_first ? steps.time(step - 1) : -1;
      const int64_t here = end(t), both = next < 0 ? 0 : smaller(here, end(next));
      if (next >= 0) find_rows(next, next_rows);
      if (at.norm) back_h(t, 0, here, true);
      if (!at.after) {
        all_blocks<Candidate>(0, here, 2, 3, false);
        meet_by_units();
      }
      if (at.norm) back_h(t, 0, here, false);
      const int64_t gates = at.after ? 3 : 2;
      all_blocks<Product>(0, both, 0, gates, true);
      all_blocks<Product>(both, here, 0, gates, false);
      if (next >= 0) begin_rows(next_rows, here, end(next));
      meet_by_units();
      BackwardRow<Real>* done = rows;
      rows = next_rows, next_rows = done;
    }
  }

  // `saved` of this chunk, which nobody kept: every state is known, so that all of its steps can be done at once.
  void save_again() const {
    Forward<Real> one{run.x, run.x_step, run.x_row, run.packed, run.h_0, run.h_0_row, const_cast<Real*>(run.output), run.output_row,
                      nullptr, saved_again, norms_again, run.reverse, run.extras};
    const int64_t n = chunk_last - chunk_first;
    int64_t first = chunk_first, end = chunk_last;
    Share rows = share_rows(s, at.h_blocks, 0, 1);
    if (n >= place.members) {
      first = chunk_first + n * place.member / place.members, end = chunk_first + n * (place.member + 1) / place.members;
    } else {
      rows = share_rows(s, at.h_blocks, place.member, place.members);
    }
    Barrier nobody;
    forward_member(s, plan, one, rows, again_scratch, again_scratch, chunk_row).stretch(first, end, nobody, 1);
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
    for (int64_t i = 0; i < share.rows; ++i) {
      const int64_t b = share.row(i), sequence = steps.sequence(b);
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        store(carry + b * at.carry_row() + block * L,
              run.d_h_n ? load_first(run.d_h_n + sequence * run.d_h_n_row + block * L, units(block)) : splat<Real>(0));
        if (run.d_fresh) store_first(run.d_fresh + sequence * s.H + block * L, splat<Real>(0), units(block));
      }
    }
  }

  void end_carry() const {
    if (!run.d_h_0) return;
    for (int64_t i = 0; i < share.rows; ++i) {
      const int64_t b = share.row(i);
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        store_first(run.d_h_0 + steps.sequence(b) * s.H + block * L, load(carry + b * at.carry_row() + block * L), units(block));
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
        const Real* d = me.d_gates + (row + m) * me.at.columns() * H;
        d_rz[m] = d + me.at.x_column() * H;
        d_n[m] = d + me.at.x_n_column() * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      const Real* w = me.w_ih + block * 3 * H * L;
      multiply<Real, Rows, Blocks, 1>(sums, d_rz, w, 3 * H * L, 2 * H);
      multiply<Real, Rows, Blocks, 1>(sums, d_n, w + 2 * H * L, 3 * H * L, H);
      UNROLL for (int m = 0; m < Rows; ++m) {
        const int64_t dense = me.chunk_row + row + m, number = me.plan.numbers ? me.plan.numbers[dense] : dense;
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const int64_t feature = (block + u) * L;
          store_first(me.run.d_x + number * me.s.I + feature, sums[m][u],
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

  // This member's part of the chunk's rows, as visit(t, b, k) with k the place in d_gates.
  template <class Visit>
  void my_rows(const Visit& visit) const {
    const int64_t k_0 = chunk_size * place.member / place.members, k_1 = chunk_size * (place.member + 1) / place.members;
    all_rows([&](int64_t t, int64_t b, int64_t k) {
      if (k >= k_0 && k < k_1) visit(t, b, k);
    });
  }
  template <class Visit>
  void all_rows(const Visit& visit) const {
    // time upwards: the order of the rows in d_gates
    const int64_t low = steps.reverse ? s.T - chunk_last : chunk_first;
    int64_t k = 0;
    for (int64_t t = low; t < low + chunk_last - chunk_first; ++t) {
      for (int64_t b = 0; b < steps.active(t); ++b, ++k) visit(t, b, k);
    }
  }

  // Both sides of the weights' gradients in the order in which they are multiplied; the biases' gradients on the way.
  void pack_sides(bool first_chunk) const {
    const int64_t H = at.H, rows = chunk_size, all = at.lefts() * at.panels;
    for (int64_t item = all * place.member / place.members; item < all * (place.member + 1) / place.members; ++item) {
      const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
      const int n = static_cast<int>(smaller<int64_t>(max_rows, H - unit));
      Real* to = left + item * rows * max_rows;
      const Real* from = d_gates + (at.left_0() + gate) * H + unit;
      Real sum[max_rows] = {};
      for (int64_t k_0 = 0; k_0 < rows; k_0 += sum_terms) {
        Real part[max_rows] = {};
        for (int64_t k = k_0; k < smaller(k_0 + sum_terms, rows); ++k) {
          for (int m = 0; m < max_rows; ++m) {
            const Real value = m < n ? from[k * at.columns() * H + m] : Real(0);
            to[k * max_rows + m] = value;
            part[m] += value;
          }
        }
        for (int m = 0; m < max_rows; ++m) sum[m] += part[m];
      }
      if (at.norm) continue;  // the biases come after the normalisation: norm_sums
      const bool of_x = gate != 2, of_h = gate < 3;
      for (int m = 0; m < n; ++m) {
        if (of_x && run.d_b_ih) add(run.d_b_ih + (gate < 2 ? gate : 2) * H + unit + m, sum[m], first_chunk);
        if (of_h && run.d_b_hh) add(run.d_b_hh + gate * H + unit + m, sum[m], first_chunk);
      }
    }
    my_rows([&](int64_t t, int64_t b, int64_t k) {
      Real* to = right + k * L;
      if (at.with_w_hh) {
        const Real *h = h_prev(t, b), *m = this->mask(b), *r_s = at.after ? nullptr : saved(t, b);
        for (int64_t block = 0; block < at.h_blocks; ++block, to += rows * L) {
          const int n = units(block);
          Vec<Real> value = load_first(h + block * L, n);
          if (m) value = value * load_first(m + block * L, n);
          store(to, value);
          if (!at.after) {
            const Vec<Real> r = load_first(r_s + block * L, n);
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
    });
  }

  // Layer norm: the sums over the chunk that are the gradients of the biases and gains, a block of units each time.
  void norm_sums(bool first_chunk) const {
    const int64_t H = at.H, all = 3 * at.h_blocks;
    for (int64_t item = all * place.member / place.members; item < all * (place.member + 1) / place.members; ++item) {
      const int64_t gate = item / at.h_blocks, unit = item % at.h_blocks * L;
      const int n = units(item % at.h_blocks);
      const int64_t of_x = (gate == 2 ? 3 : gate) * H + unit, of_h = gate * H + unit;
      Vec<Real> sums[4] = {}, parts[4] = {};
      const auto put_by = [&] {
        for (int i = 0; i < 4; ++i) sums[i] = sums[i] + parts[i], parts[i] = splat<Real>(0);
      };
      all_rows([&](int64_t t, int64_t b, int64_t k) {
        const Real *d = d_gates + k * at.columns() * H, *y = saved(t, b) + 4 * H + gate * H + unit;
        const Vec<Real> d_x = load_first(d + of_x, n), d_h = load_first(d + of_h, n);
        parts[0] = parts[0] + d_x, parts[1] = parts[1] + d_h;
        parts[2] = fma(d_x, load_first(y + 3 * H, n), parts[2]), parts[3] = fma(d_h, load_first(y, n), parts[3]);
        if ((k + 1) % sum_terms == 0) put_by();
      });
      put_by();
      Real* const to[4] = {run.d_b_ih, run.d_b_hh, run.d_g_ih, run.d_g_hh};
      for (int i = 0; i < 4; ++i) {
        if (!to[i]) continue;
        Real* c = to[i] + gate * H + unit;
        store_first(c, first_chunk ? sums[i] : load_first(c, n) + sums[i], n);
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

  // to [3H, width] += left^T right, from the columns of `left` that these three gates have there
  void weight_product(Real* to, int64_t width, const Real* b, const Real* b_of_candidate, const FromGates& from,
                      bool overwrite) const {
    const int64_t blocks = ceil_div(width, L), all = 3 * at.panels;
    const int64_t item_0 = all * place.member / place.members, item_1 = all * (place.member + 1) / place.members;
    for (int64_t block = 0; block < blocks;) {
      const int64_t rest = blocks - block;
      const int64_t take = rest >= 3 && rest != 4 ? 3 : rest >= 2 ? 2 : 1;
      for (int64_t item = item_0; item < item_1; ++item) {
        const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
        const Real* a = left + (from.gate[gate] * at.panels + item % at.panels) * chunk_size * max_rows;
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
      weight_product(run.d_w_hh, at.H, b, candidate, FromGates{0, 1, 2}, first_chunk);
      b = candidate + at.h_blocks * chunk_size * L;
    }
    const int64_t n = at.x_n_column() - at.left_0(), rz = at.x_column() - at.left_0();
    if (at.with_w_ih) weight_product(run.d_w_ih, at.I, b, b, FromGates{rz, rz + 1, n}, first_chunk);
  }

  void work() {
    pack_weights();
    begin_carry();
    meet();
    const bool biases = run.d_b_ih || run.d_b_hh || run.d_g_ih || run.d_g_hh;
    const bool sides = at.with_w_hh || at.with_w_ih || biases;
    const int64_t length = chunk_steps(s);
    bool first_chunk = true;
    for (chunk_last = s.T; chunk_last > 0; chunk_last = chunk_first) {
      chunk_first = chunk_last > length ? chunk_last - length : 0;
      const int64_t low = steps.reverse ? s.T - chunk_last : chunk_first, high = low + chunk_last - chunk_first;
      chunk_row = steps.dense(low, 0);
      chunk_size = steps.dense(high - 1, steps.active(high - 1)) - chunk_row;
      if (at.again) {
        save_again();
        meet();
      }
      recurrence();
      meet();
      if (at.norm) {
        my_rows([&](int64_t t, int64_t b, int64_t) { back_x(t, b); });
        meet();
      }
      if (at.with_x) inputs();
      if (sides) {
        pack_sides(first_chunk);
        if (at.norm && biases) norm_sums(first_chunk);
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
  const Plan& plan;
  const Backward<Real>* runs;
  int directions;
  Real* scratch;  // a part for each direction
  int64_t scratch_each;
  Real* own;  // a part for each member
  int64_t own_each;
  Barrier* barriers;  // one a direction

  static void work(void* self, int member, int members) {
    const auto& job = *static_cast<const BackwardJob*>(self);
    for (int direction = 0; direction < job.directions; ++direction) {
      const Place place = place_in(direction, job.directions, member, members);
      if (place.member >= 0) job.run(direction, place, job.own + member * job.own_each);
    }
  }

  void run(int direction, Place place, Real* own) const {
    const Backward<Real>& one = runs[direction];
    const BackwardLayout<Real> at(sizes, one);
    Real* w_hh = scratch + direction * scratch_each;
    Real* w_ih = w_hh + at.w_hh_size();
    Real* carry = w_ih + at.w_ih_size();
    Real* left = carry + at.carry_size(sizes.B);
    Real* right = left + at.left_size();
    Real* d_gates = right + at.right_size();
    Real* saved = d_gates + at.d_gates_size();
    Real* norms = saved + at.saved_size();
    auto* rows = reinterpret_cast<BackwardRow<Real>*>(own);
    BackwardMember<Real> me{{sizes, one, {sizes, plan, one.reverse}, share_of(sizes, at.h_blocks, place.member, place.members)},
                            plan, at, place, barriers[direction],
                            w_hh, w_ih, carry, left, right, d_gates, saved, norms, rows, rows + sizes.B,
                            own + backward_rows<Real>(sizes), 0, 0, 0, 0};
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
int64_t backward_own_scratch(const Sizes& s, bool again) {
  return backward_rows<Real>(s) + (again ? forward_scratch<Real>(s) : 0);
}

template <class Real>
int backward_threads(const Sizes& s, const Plan& plan, int directions) {
  const int64_t multiply_adds = directions * plan.rows * 3 * s.H * (2 * s.I + 2 * s.H);
  const int64_t most = smaller<int64_t>(s.threads, multiply_adds / 200000);
  return static_cast<int>(most < 1 ? 1 : most);
}

template <class Real>
void backward(const Sizes& sizes, const Plan& plan, const Backward<Real>* runs, int directions, int threads, Real* scratch,
              int64_t scratch_each, Real* own, int64_t own_each) {
  Barrier barriers[2];
  BackwardJob<Real> job{sizes, plan, runs, directions, scratch, scratch_each, own, own_each, barriers};
  run_team(threads, BackwardJob<Real>::work, &job);
}

// ------------------------------------------------------------------------------------------------ the affine map

template <class Real>
struct AffineJob {
  const Affine<Real>& a;
  // Rows and outputs of a tile. A sum is added up alone and always in the same order, whatever its tile.
  static constexpr int tile_rows = 2, tile_outputs = 4;

  static void work(void* self, int member, int members) {
    const Affine<Real>& a = static_cast<const AffineJob*>(self)->a;
    const int64_t end = a.rows * (member + 1) / members;
    int64_t row = a.rows * member / members;
    for (; row + tile_rows <= end; row += tile_rows) outputs<tile_rows>(a, row);
    for (; row < end; ++row) outputs<1>(a, row);
  }

  template <int Rows>
  static void outputs(const Affine<Real>& a, int64_t row) {
    int64_t output = 0;
    for (; output + tile_outputs <= a.O; output += tile_outputs) tile<Rows, tile_outputs>(a, row, output);
    for (; output < a.O; ++output) tile<Rows, 1>(a, row, output);
  }

  template <int Rows, int Outputs>
  static void tile(const Affine<Real>& a, int64_t row, int64_t output) {
    constexpr int L = lanes<Real>;
    Vec<Real> sums[Rows * Outputs] = {};
    for (int64_t i = 0; i < a.I; i += L) {
      const int n = static_cast<int>(smaller<int64_t>(L, a.I - i));
      Vec<Real> x[Rows];
      UNROLL for (int r = 0; r < Rows; ++r) x[r] = load_first(a.x + (row + r) * a.x_row + i, n);
      UNROLL for (int o = 0; o < Outputs; ++o) {
        const Vec<Real> w = load_first(a.w + (output + o) * a.I + i, n);
        UNROLL for (int r = 0; r < Rows; ++r) sums[r * Outputs + o] = fma(x[r], w, sums[r * Outputs + o]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int o = 0; o < Outputs; ++o) {
        Real sum = 0;
        for (int lane = 0; lane < L; ++lane) sum += sums[r * Outputs + o][lane];
        a.y[(row + r) * a.O + output + o] = a.b ? sum + a.b[output + o] : sum;
      }
    }
  }
};

template <class Real>
void affine(const Affine<Real>& a, int threads) {
  AffineJob<Real> job{a};
  const int64_t enough = a.rows * a.I * a.O / 200000;
  const int64_t most = smaller<int64_t>(smaller<int64_t>(threads, a.rows), enough);
  run_team(static_cast<int>(most < 1 ? 1 : most), AffineJob<Real>::work, &job);
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
    backward_scratch<Real>, backward_own_scratch<Real>, backward_threads<Real>, backward<Real>, activations<Real>,
    affine<Real>,
};

}  // namespace TIDEGATE_ISA
}  // namespace tidegate
