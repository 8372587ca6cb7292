// The recurrence backwards. Part of kernels.inl.
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
template <class Stored>
struct BackwardRow {
  using Real = Sum<Stored>;
  State<Stored> old;
  const Stored* saved;
  const Real *d_output, *d_own, *mask;  // each null where there is none
  const uint8_t* zone;
  Stored* d_gates;
  Real *carry, *d_fresh;
  bool anew;  // the state before it is a fresh one
};

// ... for the step that is worked on and the one that follows it.
template <class Stored>
inline int64_t backward_rows(const Sizes& s) {
  return padded(ceil_div(2 * s.B * static_cast<int64_t>(sizeof(BackwardRow<Stored>)), sizeof(Sum<Stored>)), 16);
}

// A weight matrix as backward reads it: blocks of one vector's columns, from each block its rows, one a gate and unit, or
// (`Terms`) some of them at a time, side by side for every lane.
template <class Stored>
struct Columns {
  const Stored* first;
  int64_t block_step, row_step;
  const Stored* at(int64_t block, int64_t row) const { return first + block * block_step + row * row_step; }
};

template <class Stored>
struct BackwardLayout {
  static constexpr int L = lanes<Stored>;
  int64_t H, I, h_blocks, x_blocks, panels, rows;
  bool after, norm, again, with_x, with_w_ih, with_w_hh;
  bool w_hh_as_it_lies, w_ih_as_it_lies;  // a single step doesn't pay for a copy in blocks; but loads are of whole vectors
  BackwardLayout(const Sizes& s, const Backward<Stored>& run)
      : H(s.H), I(s.I), h_blocks(ceil_div(H, L)), x_blocks(ceil_div(I, L)), panels(ceil_div(H, max_rows)),
        rows(smaller(chunk_steps(s), s.T) * s.B), after(s.reset == Reset::after), norm(s.norm), again(!run.saved),
        with_x(run.d_x), with_w_ih(run.d_w_ih), with_w_hh(run.d_w_hh), w_hh_as_it_lies(!narrow<Stored> && s.T == 1 && H % L == 0),
        w_ih_as_it_lies(!narrow<Stored> && s.T == 1 && I % L == 0) {}
  int64_t carry_row() const { return h_blocks * L; }
  // Columns of d_gates, H each: those of W_hh's three gates, of W_ih's first two, and of its last.
  int64_t columns() const { return norm ? 10 : 4; }
  int64_t h_column() const { return norm ? 4 : 0; }
  int64_t x_column() const { return norm ? 7 : 0; }
  int64_t x_n_column() const { return norm ? 9 : 3; }
  // Those that go into the weights' gradients, in `left`.
  int64_t left_0() const { return norm ? 4 : 0; }
  int64_t lefts() const { return columns() - left_0(); }
  static int64_t filled(int64_t n) { return TIDEGATE_ISA::filled<Stored>(n); }
  int64_t copy_rows() const {  // products begin at the candidate's rows, too
    const int64_t whole = filled(3 * H), last = 2 * H + filled(H);
    return whole > last ? whole : last;
  }
  int64_t copy_block() const { return copy_rows() * L; }
  // in the order in which they lie, each in sums
  int64_t w_hh_size() const { return w_hh_as_it_lies ? 0 : as_sums<Stored>(h_blocks * copy_block()); }  // block of units, gate row, lane
  int64_t w_ih_size() const { return with_x && !w_ih_as_it_lies ? as_sums<Stored>(x_blocks * copy_block()) : 0; }  // of features
  int64_t carry_size(int64_t B) const { return padded(B * carry_row(), 16); }
  int64_t left_size() const { return as_sums<Stored>(lefts() * panels * filled(rows) * max_rows); }  // column, panel, row, unit in panel
  int64_t right_blocks() const {
    return (with_w_hh ? h_blocks * (after ? 1 : 2) : 0) + (with_w_ih ? x_blocks : 0);
  }
  int64_t right_size() const { return as_sums<Stored>(right_blocks() * filled(rows) * L); }  // block, row, lane
  int64_t d_gates_size() const { return as_sums<Stored>(rows * columns() * H); }
  int64_t saved_size() const { return again ? as_sums<Stored>(rows * slots(norm) * H) : 0; }
  int64_t norms_size() const { return again && norm ? padded(rows * 4, 16) : 0; }
  int64_t size(int64_t B) const {
    return w_hh_size() + w_ih_size() + carry_size(B) + left_size() + right_size() + d_gates_size() + saved_size() + norms_size();
  }
};

template <class Stored>
struct BackwardMember : Member<Stored, Backward<Stored>> {
  using Base = Member<Stored, Backward<Stored>>;
  using Real = Sum<Stored>;
  using Base::s, Base::run, Base::steps, Base::share, Base::units, Base::L, Base::h_prev, Base::x;
  static constexpr int each = Terms<Stored>::each, row_terms = Terms<Stored>::row_terms;
  const Plan& plan;
  BackwardLayout<Stored> at;
  Cut cut;
  Worker worker;
  int piece, pieces;  // which one of all is worked on
  Columns<Stored> w_hh, w_ih;
  Stored *w_hh_copy, *w_ih_copy;
  Real* carry;
  Stored *left, *right, *d_gates, *saved_again;
  Real* norms_again;
  BackwardRow<Stored> *rows, *next_rows;  // those of this member
  Real* again_scratch;  // of this member
  int64_t chunk_first;  // the steps of this chunk: chunk_first ... chunk_last - 1, worked on from the last
  int64_t chunk_last;
  int64_t chunk_row;    // the lowest of its rows
  int64_t chunk_size;   // its rows

  // work() for each of so many pieces, by whoever is free. False: this thread is to go home.
  template <class Work>
  bool in_pieces(int all, const Work& work) {
    return worker.phase(all, [&](int one) {
      piece = one, pieces = all;
      work();
    });
  }
  template <class Work>
  bool in_shares(const Work& work) {
    return in_pieces(cut.pieces, [&] {
      share = cut.share(s, at.h_blocks, piece);
      work();
    });
  }

  int64_t row_in_chunk(int64_t t, int64_t b) const { return steps.dense(t, b) - chunk_row; }
  Stored* d_gates_of(int64_t t, int64_t b) const { return d_gates + row_in_chunk(t, b) * at.columns() * at.H; }
  const Stored* saved(int64_t t, int64_t b) const {
    return (at.again ? saved_again + row_in_chunk(t, b) * slots(at.norm) * at.H
                     : run.saved + steps.number(t, b) * slots(at.norm) * at.H);
  }
  const Real* norms(int64_t t, int64_t b) const {
    return at.again ? norms_again + row_in_chunk(t, b) * 4 : run.norms + steps.number(t, b) * 4;
  }
  static Vec<Stored> masked(const BackwardRow<Stored>& row, int64_t unit, int n, Vec<Stored> v) {
    return row.mask ? v * load_first(row.mask + unit, n) : v;
  }

  void find_rows(int64_t t, BackwardRow<Stored>* found) const {
    const Extras<Real>& extras = run.extras;
    const int64_t n = share.below(steps.active(t));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t b = share.row(i);
      BackwardRow<Stored>& row = found[i];
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
  Vec<Stored> gates(const BackwardRow<Stored>& row, int64_t block, bool zones, Vec<Stored> d_h) const {
    const int64_t unit = block * L, H = at.H;
    const int n = units(block);
    if (row.d_output) d_h = d_h + load_first(row.d_output + unit, n);
    const Stored* from = row.saved + unit;
    const Real* d_own = row.d_own ? row.d_own + unit : nullptr;
    Stored* to = row.d_gates + unit;
    const Vec<Stored> one = splat<Real>(1);
    const Vec<Stored> r = load_share(from, n), z = load_share(from + H, n), candidate = load_signed(from + 2 * H, n);
    const Vec<Stored> old = row.old.load(unit, n);
    Vec<Stored> d_n = d_h * (one - z), d_z = d_h * (old - candidate), keep = z;
    if (zones) {
      const Vec<Stored> k = this->zone(row.zone, unit, n), rest = one - k;
      d_n = d_n * rest, d_z = d_z * rest, keep = fma(k, one - z, z);
    }
    if (d_own) d_n = d_n + load_first(d_own + 2 * H, n), d_z = d_z + load_first(d_own + H, n);
    d_n = d_n * ((one - candidate) * (one + candidate));
    store_first(to + H, d_z * (z * (one - z)), n);
    store_first(to + 3 * H, d_n, n);
    Vec<Stored> d_r = d_n, d_h_n = d_n;  // Reset::before: d_r has to wait for the product with d_h_n
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
  void begin_rows(const BackwardRow<Stored>* found, int64_t i_0, int64_t i_1) const {
    for (int64_t i = i_0; i < i_1; ++i) {
      for (int64_t block = share.block_0; block < share.block_1; ++block) {
        Real* c = found[i].carry + block * L;
        store(c, gates(found[i], block, this->zones(), load(c)));
      }
    }
  }

  // What has come back to the state before a row: where it was a fresh one, the gradient ends there.
  Vec<Stored> settle(const BackwardRow<Stored>& row, int64_t block, Vec<Stored> value) const {
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
    TILE void run(int64_t first) const {
      const int64_t H = me.at.H;
      const BackwardRow<Stored>*row = me.rows + i_0 + first, *next = me.next_rows + i_0 + first;
      const bool mask = me.run.extras.mask, zones = me.zones();
      const Stored* d[Rows];
      Vec<Stored> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = row[m].d_gates + (me.at.h_column() + first_gate) * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = mask ? splat<Real>(0) : load(row[m].carry + (block + u) * L);
      }
      multiply<Stored, Rows, Blocks, 1>(sums, d, me.w_hh.at(block, first_gate * H), me.w_hh.block_step,
                                      (last_gate - first_gate) * H, me.w_hh.row_step);
      ONCE for (int m = 0; m < Rows; ++m) {
        ONCE for (int u = 0; u < Blocks; ++u) {
          Real* c = row[m].carry + (block + u) * L;
          Vec<Stored> value = sums[m][u];
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
    TILE void run(int64_t first) const {
      const int64_t H = me.at.H;
      const BackwardRow<Stored>* row = me.rows + i_0 + first;
      const Stored* d[Rows];
      Vec<Stored> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        d[m] = row[m].d_gates + (me.at.h_column() + 2) * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      multiply<Stored, Rows, Blocks, 1>(sums, d, me.w_hh.at(block, 2 * H), me.w_hh.block_step, H, me.w_hh.row_step);
      ONCE for (int m = 0; m < Rows; ++m) {
        ONCE for (int u = 0; u < Blocks; ++u) {
          const int64_t unit = (block + u) * L;
          const int n = me.units(block + u);
          const Vec<Stored> r = load_share(row[m].saved + unit, n);
          Vec<Stored> d_r = sums[m][u] * masked(row[m], unit, n, row[m].old.load(unit, n));
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
      Stored* d = d_gates_of(t, b);
      normalise_back(d + from * H, saved(t, b) + (4 + from) * H, run.weights.g_hh + from * H, norms(t, b)[candidate ? 1 : 0],
                     candidate ? H : 2 * H, d + (4 + from) * H);
    }
  }
  void back_x(int64_t t, int64_t b) const {
    const int64_t H = at.H;
    Stored* d = d_gates_of(t, b);
    normalise_back(d, saved(t, b) + 7 * H, run.weights.g_ih, norms(t, b)[2], 2 * H, d + 7 * H);
    normalise_back(d + 3 * H, saved(t, b) + 9 * H, run.weights.g_ih + 2 * H, norms(t, b)[3], H, d + 9 * H);
  }

  int64_t end(int64_t t) const { return share.below(steps.active(t)); }

  // The chunk's last step, of this share.
  void begin_chunk() const {
    find_rows(steps.time(chunk_last - 1), rows);
    begin_rows(rows, 0, end(steps.time(chunk_last - 1)));
  }
  // A step whose gates are done: what comes back through the products, and the gates of the step before.
  void candidate_of(int64_t t) const {
    if (at.norm) back_h(t, 0, end(t), true);
    if (!at.after) all_blocks<Candidate>(0, end(t), 2, 3, false);
  }
  void step_of(int64_t t, int64_t next) const {
    const int64_t here = end(t), both = next < 0 ? 0 : smaller(here, end(next));
    if (at.norm) back_h(t, 0, here, false);
    const int64_t gates = at.after ? 3 : 2;
    all_blocks<Product>(0, both, 0, gates, true);
    all_blocks<Product>(both, here, 0, gates, false);
    if (next >= 0) begin_rows(next_rows, here, end(next));
  }
  int64_t next_of(int64_t step) const { return step > chunk_first ? steps.time(step - 1) : -1; }

  void recurrence() {
    begin_chunk();
    for (int64_t step = chunk_last - 1; step >= chunk_first; --step) {
      const int64_t t = steps.time(step), next = next_of(step);
      if (next >= 0) find_rows(next, next_rows);
      candidate_of(t);
      step_of(t, next);
      BackwardRow<Stored>* done = rows;
      rows = next_rows, next_rows = done;
    }
  }

  // The same by units. The rows of a step are found by whoever does a piece of it.
  bool recurrence_by_units() {
    if (!in_shares([&] { begin_chunk(); })) return false;
    for (int64_t step = chunk_last - 1; step >= chunk_first; --step) {
      const int64_t t = steps.time(step), next = next_of(step);
      bool found = false;
      const auto find = [&] {
        if (found) return;
        find_rows(t, rows);
        if (next >= 0) find_rows(next, next_rows);
        found = true;
      };
      if (!at.after && !in_shares([&] { find(), candidate_of(t); })) return false;
      if (!in_shares([&] { find(), step_of(t, next); })) return false;
    }
    return true;
  }

  // `saved` of this chunk, which nobody kept: every state is known, so that all of its steps can be done at once.
  void save_again() const {
    Forward<Stored> one{};
    one.x = run.x, one.x_step = run.x_step, one.x_row = run.x_row, one.weights = run.packed;
    one.h_0 = run.h_0, one.h_0_row = run.h_0_row;
    if constexpr (narrow<Stored>) one.rounded = const_cast<Stored*>(run.output);
    else one.output = const_cast<Stored*>(run.output);
    one.output_row = run.output_row, one.saved = saved_again, one.norms = norms_again;
    one.reverse = run.reverse, one.extras = run.extras;
    const int64_t n = chunk_last - chunk_first;
    int64_t first = chunk_first, end = chunk_last;
    Share rows = share_rows(s, at.h_blocks, 0, 1);
    if (n >= pieces) {
      first = chunk_first + n * piece / pieces, end = chunk_first + n * (piece + 1) / pieces;
    } else {
      rows = share_rows(s, at.h_blocks, piece, pieces);
    }
    auto me = forward_member(s, plan, one, rows, again_scratch, again_scratch, again_scratch, chunk_row);
    while (first < end) first = me.stretch(first, end);
  }

  // A block of one vector's columns from each row of a row-major matrix: to[row lanes + lane].
  void columns(Stored* to, const Real* from, int64_t row, int64_t rows, int n) const {
    for (int64_t k = 0; k < rows; ++k) put_term(to, k, load_first(from + k * row, n));
    for (int64_t k = rows; k < at.copy_rows(); ++k) put_term(to, k, splat<Real>(0));
  }
  // Term k of every lane of a block. In bfloat16 two lie in 32 bits: the first one puts 0 in the place of the second.
  static void put_term(Stored* block, int64_t k, Vec<Stored> v) {
    if constexpr (narrow<Stored>) {
      Stored* to = block + k / 2 * 2 * L;
      const Ints bits = rounded(v);
      store(reinterpret_cast<float*>(to), of_bits(k % 2 == 0 ? Ints(VecWords(bits) >> 16) : load_bits(to) | bits));
    } else {
      store(block + k * L, v);
    }
  }

  void pack_weights() const {
    const Weights<Real>& w = run.weights;
    const int64_t members = pieces, me = piece, gate_rows = 3 * at.H;
    for (int64_t block = at.h_blocks * me / members; !at.w_hh_as_it_lies && block < at.h_blocks * (me + 1) / members; ++block) {
      columns(w_hh_copy + block * at.copy_block(), w.w_hh + block * L, w.w_hh_row, gate_rows, units(block));
    }
    if (!at.with_x || at.w_ih_as_it_lies) return;
    for (int64_t block = at.x_blocks * me / members; block < at.x_blocks * (me + 1) / members; ++block) {
      columns(w_ih_copy + block * at.copy_block(), w.w_ih + block * L, w.w_ih_row, gate_rows,
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
    TILE void run(int64_t first) const {
      const int64_t row = row_0 + first, H = me.at.H;
      const Stored *d_rz[Rows], *d_n[Rows];
      Vec<Stored> sums[Rows][Blocks];
      UNROLL for (int m = 0; m < Rows; ++m) {
        const Stored* d = me.d_gates + (row + m) * me.at.columns() * H;
        d_rz[m] = d + me.at.x_column() * H;
        d_n[m] = d + me.at.x_n_column() * H;
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = splat<Real>(0);
      }
      const Columns<Stored>& w = me.w_ih;
      multiply<Stored, Rows, Blocks, 1>(sums, d_rz, w.at(block, 0), w.block_step, 2 * H, w.row_step);
      multiply<Stored, Rows, Blocks, 1>(sums, d_n, w.at(block, 2 * H), w.block_step, H, w.row_step);
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
    const int64_t row_0 = chunk_size * piece / pieces;
    const int64_t n = chunk_size * (piece + 1) / pieces - row_0;
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
    const auto begin = [&](int64_t member) {  // (two rows that lie side by side in `right` are one member's)
      const int64_t k = chunk_size * member / pieces;
      return member == pieces ? k : k / each * each;
    };
    const int64_t k_0 = begin(piece), k_1 = begin(piece + 1);
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
    const int64_t H = at.H, rows = chunk_size, filled = at.filled(rows), all = at.lefts() * at.panels;
    for (int64_t item = all * piece / pieces; item < all * (piece + 1) / pieces; ++item) {
      const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
      const int n = static_cast<int>(smaller<int64_t>(max_rows, H - unit));
      Stored* to = left + item * filled * max_rows;
      const Stored* from = d_gates + (at.left_0() + gate) * H + unit;
      Real sum[max_rows] = {};
      for (int64_t k_0 = 0; k_0 < rows; k_0 += sum_terms) {
        Real part[max_rows] = {};
        for (int64_t k = k_0; k < smaller(k_0 + sum_terms, rows); ++k) {
          for (int m = 0; m < max_rows; ++m) {
            const Stored value = m < n ? from[k * at.columns() * H + m] : Stored{};
            to[(k / row_terms * max_rows + m) * row_terms + k % row_terms] = value;
            part[m] += widened(value);
          }
        }
        for (int m = 0; m < max_rows; ++m) sum[m] += part[m];
      }
      for (int64_t k = rows; k < filled; ++k) {
        for (int m = 0; m < max_rows; ++m) to[(k / row_terms * max_rows + m) * row_terms + k % row_terms] = Stored{};
      }
      if (at.norm) continue;  // the biases come after the normalisation: norm_sums
      const bool of_x = gate != 2, of_h = gate < 3;
      for (int m = 0; m < n; ++m) {
        if (of_x && run.d_b_ih) add(run.d_b_ih + (gate < 2 ? gate : 2) * H + unit + m, sum[m], first_chunk);
        if (of_h && run.d_b_hh) add(run.d_b_hh + gate * H + unit + m, sum[m], first_chunk);
      }
    }
    for (int64_t block = piece; block < at.right_blocks(); block += pieces) {
      for (int64_t k = padded(rows, each); k < filled; ++k) put_term(right + block * filled * L, k, splat<Real>(0));
    }
    my_rows([&](int64_t t, int64_t b, int64_t k) {
      Stored* to = right;
      if (at.with_w_hh) {
        const State<Stored> h = h_prev(t, b);
        const Real* m = this->mask(b);
        const Stored* r_s = at.after ? nullptr : saved(t, b);
        for (int64_t block = 0; block < at.h_blocks; ++block, to += filled * L) {
          const int n = units(block);
          Vec<Stored> value = h.load(block * L, n);
          if (m) value = value * load_first(m + block * L, n);
          put_term(to, k, value);
          if (!at.after) put_term(to + at.h_blocks * filled * L, k, load_share(r_s + block * L, n) * value);
        }
        if (!at.after) to += at.h_blocks * filled * L;
      }
      if (at.with_w_ih) {
        const Stored* from = x(t, b);
        for (int64_t block = 0; block < at.x_blocks; ++block, to += filled * L) {
          put_term(to, k, load_first(from + block * L, static_cast<int>(smaller<int64_t>(L, s.I - block * L))));
        }
      }
    });
  }

  // Layer norm: the sums over the chunk that are the gradients of the biases and gains, a block of units each time.
  void norm_sums(bool first_chunk) const {
    const int64_t H = at.H, all = 3 * at.h_blocks;
    for (int64_t item = all * piece / pieces; item < all * (piece + 1) / pieces; ++item) {
      const int64_t gate = item / at.h_blocks, unit = item % at.h_blocks * L;
      const int n = units(item % at.h_blocks);
      const int64_t of_x = (gate == 2 ? 3 : gate) * H + unit, of_h = gate * H + unit;
      Vec<Stored> sums[4] = {}, parts[4] = {};
      const auto put_by = [&] {
        for (int i = 0; i < 4; ++i) sums[i] = sums[i] + parts[i], parts[i] = splat<Real>(0);
      };
      all_rows([&](int64_t t, int64_t b, int64_t k) {
        const Stored *d = d_gates + k * at.columns() * H, *y = saved(t, b) + 4 * H + gate * H + unit;
        const Vec<Stored> d_x = load_first(d + of_x, n), d_h = load_first(d + of_h, n);
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
  void weight_tile(const Stored* a, const Stored* b, Real* to, int n_rows, int64_t to_row, int64_t column, int64_t width,
                   bool overwrite) const {
    Vec<Stored> sums[max_rows][Blocks];
    sum_up<Stored, max_rows, Blocks>(sums, b, groups<Stored>(chunk_size),
                                     [a](int m, int64_t i) { return a + (i * max_rows + m) * row_terms; });
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
  void weight_product(Real* to, int64_t width, const Stored* b, const Stored* b_of_candidate, const FromGates& from,
                      bool overwrite) const {
    const int64_t blocks = ceil_div(width, L), all = 3 * at.panels, filled = at.filled(chunk_size);
    const int64_t item_0 = all * piece / pieces, item_1 = all * (piece + 1) / pieces;
    for (int64_t block = 0; block < blocks;) {
      const int64_t rest = blocks - block;
      const int64_t take = rest >= 3 && rest != 4 ? 3 : rest >= 2 ? 2 : 1;
      for (int64_t item = item_0; item < item_1; ++item) {
        const int64_t gate = item / at.panels, unit = item % at.panels * max_rows;
        const Stored* a = left + (from.gate[gate] * at.panels + item % at.panels) * filled * max_rows;
        const Stored* right_side = (gate == 2 ? b_of_candidate : b) + block * filled * L;
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
    const Stored* b = right;
    if (at.with_w_hh) {
      const int64_t blocks = at.h_blocks * at.filled(chunk_size) * L;
      const Stored* candidate = at.after ? b : b + blocks;
      weight_product(run.d_w_hh, at.H, b, candidate, FromGates{0, 1, 2}, first_chunk);
      b = candidate + blocks;
    }
    const int64_t n = at.x_n_column() - at.left_0(), rz = at.x_column() - at.left_0();
    if (at.with_w_ih) weight_product(run.d_w_ih, at.I, b, b, FromGates{rz, rz + 1, n}, first_chunk);
  }

  // False: this thread is to go home.
  bool work() {
    const int parts = cut.parts;
    if (!in_shares([&] { begin_carry(); })) return false;
    if (!in_pieces(parts, [&] { pack_weights(); })) return false;
    const bool biases = run.d_b_ih || run.d_b_hh || run.d_g_ih || run.d_g_hh;
    const bool sides = at.with_w_hh || at.with_w_ih || biases;
    const int64_t length = chunk_steps(s);
    bool first_chunk = true;
    for (chunk_last = s.T; chunk_last > 0; chunk_last = chunk_first) {
      chunk_first = chunk_last > length ? chunk_last - length : 0;
      const int64_t low = steps.reverse ? s.T - chunk_last : chunk_first, high = low + chunk_last - chunk_first;
      chunk_row = steps.dense(low, 0);
      chunk_size = steps.dense(high - 1, steps.active(high - 1)) - chunk_row;
      if (at.again && !in_pieces(parts, [&] { save_again(); })) return false;
      if (cut.by_units ? !recurrence_by_units() : !in_shares([&] { recurrence(); })) return false;
      if (at.norm && !in_pieces(parts, [&] { my_rows([&](int64_t t, int64_t b, int64_t) { back_x(t, b); }); })) return false;
      const bool together = in_pieces(parts, [&] {
        if (at.with_x) inputs();
        if (!sides) return;
        pack_sides(first_chunk);
        if (at.norm && biases) norm_sums(first_chunk);
      });
      if (!together) return false;
      if (sides && !in_pieces(parts, [&] { weights(first_chunk); })) return false;
      first_chunk = false;
    }
    return in_shares([&] { end_carry(); });
  }
};

template <class Stored>
struct BackwardJob {
  using Real = Sum<Stored>;
  const Sizes& sizes;
  const Plan& plan;
  const Backward<Stored>* runs;
  int directions;
  Real* scratch;  // a part for each direction
  int64_t scratch_each;
  Real* own;  // a part for each thread
  int64_t own_each;
  Cut cut;
  Shared* shared;  // one a direction

  static void work(void* self, int place, int) {
    const auto& job = *static_cast<const BackwardJob*>(self);
    MatrixUnit unit;
    static_cast<void>(unit);
    for (int i = 0; i < job.directions; ++i) {
      const int direction = (place + i) % job.directions;  // its own first
      const Worker worker(job.shared[direction], place_in(direction, job.directions, place, job.cut.places));
      if (!job.run(direction, worker, job.own + place * job.own_each)) return;
    }
  }

  bool run(int direction, const Worker& worker, Real* own) const {
    const Backward<Stored>& one = runs[direction];
    const BackwardLayout<Stored> at(sizes, one);
    Real* w_hh = scratch + direction * scratch_each;
    Real* w_ih = w_hh + at.w_hh_size();
    Real* carry = w_ih + at.w_ih_size();
    Real* left = carry + at.carry_size(sizes.B);
    Real* right = left + at.left_size();
    Real* d_gates = right + at.right_size();
    Real* saved = d_gates + at.d_gates_size();
    Real* norms = saved + at.saved_size();
    auto* rows = reinterpret_cast<BackwardRow<Stored>*>(own);
    constexpr int64_t L = lanes<Stored>;
    const auto stored = [](Real* part) { return reinterpret_cast<Stored*>(part); };
    Columns<Stored> columns_hh{stored(w_hh), at.copy_block(), L}, columns_ih{stored(w_ih), at.copy_block(), L};
    if constexpr (!narrow<Stored>) {
      if (at.w_hh_as_it_lies) columns_hh = {one.weights.w_hh, L, one.weights.w_hh_row};
      if (at.w_ih_as_it_lies) columns_ih = {one.weights.w_ih, L, one.weights.w_ih_row};
    }
    BackwardMember<Stored> me{
        {sizes, one, {sizes, plan, one.reverse}, share_rows(sizes, at.h_blocks, 0, 1)},
        plan, at, cut, worker, 0, 1, columns_hh, columns_ih, stored(w_hh), stored(w_ih), carry, stored(left), stored(right),
        stored(d_gates), stored(saved), norms, rows, rows + sizes.B, own + backward_rows<Stored>(sizes), 0, 0, 0, 0};
    return me.work();
  }
};

template <class Stored>
int64_t backward_scratch(const Sizes& s, const Backward<Stored>* runs, int directions) {
  int64_t most = 0;
  for (int i = 0; i < directions; ++i) {
    const int64_t size = BackwardLayout<Stored>(s, runs[i]).size(s.B);
    if (size > most) most = size;
  }
  return padded(most, 16);
}

template <class Stored>
int64_t backward_own_scratch(const Sizes& s, bool again) {
  return backward_rows<Stored>(s) + (again ? forward_scratch<Stored>(s) : 0);
}

inline int backward_threads(const Sizes& s, const Plan& plan, int directions) {
  const int64_t multiply_adds = directions * plan.rows * 3 * s.H * (2 * s.I + 2 * s.H);
  const int64_t most = smaller<int64_t>(s.threads, multiply_adds / 200000);
  return static_cast<int>(most < 1 ? 1 : most);
}

template <class Stored>
void backward(const Sizes& sizes, const Plan& plan, const Backward<Stored>* runs, int directions, int threads,
              Sum<Stored>* scratch, int64_t scratch_each, Sum<Stored>* own, int64_t own_each) {
  const Cut cut(sizes, ceil_div(sizes.H, lanes<Stored>), directions, threads);
  Shared shared[2] = {{threads, cut.places}, {threads, cut.places}};
  BackwardJob<Stored> job{sizes, plan, runs, directions, scratch, scratch_each, own, own_each, cut, shared};
  run_team(threads, BackwardJob<Stored>::work, &job);
}
