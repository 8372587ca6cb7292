// The recurrence forwards. Part of kernels.inl.

template <class Stored>
struct ForwardJob {
  using Real = Sum<Stored>;
  const Sizes& sizes;
  const Plan& plan;
  const Forward<Stored>* runs;
  int directions;
  Real* scratch;  // a part for each thread
  int64_t scratch_each;
  Cut cut;
  Shared* shared;  // one a direction; by rows, one for all

  static void work(void* self, int place, int) {
    const auto& job = *static_cast<const ForwardJob*>(self);
    MatrixUnit unit;
    static_cast<void>(unit);
    Real* mine = job.scratch + place * job.scratch_each;
    if (job.cut.by_units) job.by_units(place, mine);
    else job.by_rows(place, mine);
  }

  void by_rows(int place, Real* mine) const;
  void by_units(int place, Real* mine) const;
};

// gates_x of a chunk of steps take at most so many values, to stay in the second-level cache.
constexpr int64_t gates_x_values = 48 * 1024;

template <class Stored>
inline int64_t gates_x_row(int64_t blocks) {
  return blocks * 3 * lanes<Stored>;
}

// Where the values of one row of the step that is being worked on lie: worked out once, and not for each of its blocks.
template <class Stored>
struct ForwardRow {
  using Real = Sum<Stored>;
  State<Stored> old;     // h_prev
  const Stored* factor;  // ... on its way into a product: rounded, and masked, where there is recurrent dropout
  Real* to;              // h_t
  Stored* rounded;       // ... rounded; null where nobody asks
  Stored* saved;         // null where nothing is
  const uint8_t* zone;
};

// The scratch of a thread, in the order in which it lies. What begins with `shared` is the first one's where units are split, and
// so is gates_x; the states are always, as another thread may go on with them.
template <class Stored>
struct ForwardLayout {
  using Real = Sum<Stored>;
  static constexpr int L = lanes<Stored>;
  int64_t h;                // a state
  int64_t operand;          // ... as an operand
  int64_t x_operand, x_rows;  // int8_t: x of a chunk's rows as operands
  int64_t gates_x;
  int64_t shared_rh;        // Reset::before: r * m * h_prev [B, H], then z
  int64_t shared_states;    // where the output is rounded: h of the steps before and after [2, B, H]
  int64_t operands;         // narrow, or with recurrent dropout: m * h_prev [B, H] as operands; narrow and Reset::before: of rh, too
  int64_t masked;           // narrow and recurrent dropout: one row
  int64_t products;         // layer norm: W_h h of a step, laid out like gates_x
  int64_t rows;             // where the values of each row of a step lie: a ForwardRow each
  explicit ForwardLayout(const Sizes& s) {
    constexpr bool is_narrow = narrow<Stored>;
    h = padded(s.H, L);
    operand = is_narrow ? operand_size<Stored>(s.H) : h;
    const int64_t state = s.B * h, row = gates_x_row<Stored>(ceil_div(s.H, L)), step = s.B * row, all = s.T * step;
    gates_x = padded(all < gates_x_values ? all : step < gates_x_values ? gates_x_values : step, 16);
    shared_rh = s.reset == Reset::before ? padded(2 * state, 16) : 0;
    shared_states = is_narrow ? padded(2 * state, 16) : 0;
    operands = as_sums<Stored>(s.B * operand);
    masked = is_narrow ? padded(h, 16) : 0;
    products = s.norm ? padded(step, 16) : 0;
    rows = padded(ceil_div(s.B * static_cast<int64_t>(sizeof(ForwardRow<Stored>)), sizeof(Real)), 16);
    x_operand = in_8_bits<Stored> ? operand_size<Stored>(s.I) : 0;
    x_rows = in_8_bits<Stored> && row > 0 ? as_sums<Stored>(gates_x / row * x_operand) : 0;
  }
  int64_t shared() const { return shared_rh + shared_states; }
  int64_t size() const { return padded(gates_x + shared() + operands + masked + products + rows + x_rows, 16); }
};

template <class Stored>
int64_t forward_scratch(const Sizes& s) {
  return ForwardLayout<Stored>(s).size();
}

// One direction as one thread of a team does it.
template <class Stored>
struct ForwardMember : Member<Stored, Forward<Stored>> {
  using Base = Member<Stored, Forward<Stored>>;
  using Real = Sum<Stored>;
  using Base::s, Base::run, Base::steps, Base::share, Base::units, Base::L;
  Layout<Stored> at;
  ForwardLayout<Stored> lies;
  ForwardRow<Stored>* rows;
  Real *rh, *states, *masked, *products, *gates_x;
  Stored *operands, *x_rows;
  int64_t columns;  // of gates_x and products, a row
  int64_t turn;  // even or odd: where a lone row begins to read the weights
  int64_t first_saved;  // where the output is known and only `saved` is wanted: the row number of its first row; else -1
  static constexpr bool trains = !in_8_bits<Stored>;

  const Stored* weights() const { return run.weights->memory; }
  const Real* biases() const { return run.weights->biases; }
  bool again() const { return first_saved >= 0; }
  // Computed again, only a chunk's rows have a place, in the order of their numbers.
  int64_t saved_row(int64_t t, int64_t b) const { return again() ? steps.dense(t, b) - first_saved : steps.number(t, b); }
  Stored* saved(int64_t t, int64_t b) const { return run.saved + saved_row(t, b) * slots(at.norm) * at.H; }
  Real* row_of(Real* matrix, int64_t i, int64_t block) const {
    return matrix + i * columns + block * 3 * L;
  }
  Real* gates_x_of(int64_t step, int64_t i, int64_t block) const { return row_of(gates_x, step * share.rows + i, block); }
  int64_t active_rows(int64_t t) const { return share.below(steps.active(t)); }
  // Where the output is rounded: the state before this step, and the one after it is that before the next.
  Real* state_before(int64_t step, int64_t i) const { return states + (step % 2 * s.B + share.row(i)) * lies.h; }
  Stored* operand(int64_t i) const { return operands + i * lies.operand; }

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
    TILE void run(int64_t) const {
      const Stored* a[Rows];
      Real* to[Rows];
      Vec<Stored> sums[Rows][Blocks * 3];
      const Real* bias = me.biases() + me.at.bias_x_at() + block * 3 * L;
      const bool norm = me.at.norm;
      UNROLL for (int m = 0; m < Rows; ++m) {
        if constexpr (in_8_bits<Stored>) a[m] = me.x_row(step - first, i);
        else a[m] = me.x(me.steps.time(step), me.share.row(i));
        to[m] = me.gates_x_of(step - first, i, block);
        UNROLL for (int v = 0; v < Blocks * 3; ++v) sums[m][v] = norm ? splat<Real>(0) : load(bias + v * L);
        next();
      }
      multiply<Stored, Rows, Blocks, 3>(sums, a, me.weights() + block * me.at.x_block(), me.at.x_block(), me.at.I);
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

  Stored* x_row(int64_t step, int64_t i) const { return x_rows + (step * share.rows + i) * lies.x_operand; }
  void round_x(int64_t first, int64_t last) const {
    if constexpr (in_8_bits<Stored>) {
      for (int64_t step = first; step < last; ++step) {
        const int64_t t = steps.time(step);
        for (int64_t i = 0; i < active_rows(t); ++i) round_row<Stored>(this->x(t, share.row(i)), s.I, x_row(step - first, i));
      }
    }
  }

  void project(int64_t first, int64_t last) const {
    round_x(first, last);
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
    if constexpr (trains) {
      if (!run.saved) return;
      const int64_t b = share.row(i);
      run.norms[saved_row(t, b) * 4 + factor_at] = factor;
      for (int gate = gate_0; gate < gate_0 + gates; ++gate) {
        for (int64_t block = 0; block < at.blocks; ++block) {
          store_first(saved(t, b) + (slot + gate) * at.H + block * L, load(row + (block * 3 + gate) * L), units(block));
        }
      }
    }
  }

  void normalise_x(int64_t t, int64_t i, Real* row) const {
    normalise_row(t, i, row, 0, 2, 7, 2);
    normalise_row(t, i, row, 2, 1, 7, 3);
    const Real *gain = biases() + at.gain_x_at(), *bias = biases() + at.bias_x_at();
    for (int64_t v = 0; v < at.blocks * 3 * L; v += L) store(row + v, fma(load(row + v), load(gain + v), load(bias + v)));
  }

  // The new state of one row's block, and what backward wants to know but for r.
  // zones: asked once by the caller, as every store could have changed it for all that the compiler knows.
  [[gnu::always_inline]] void finish(const ForwardRow<Stored>& row, int64_t block, bool zones, Vec<Stored> z, Vec<Stored> candidate, Vec<Stored> h_n) const {
    const int64_t unit = block * L;
    const int n = units(block);
    if constexpr (trains) {
      if (row.saved) {
        Stored* to = row.saved + unit;
        store_share(to + at.H, z, n);
        store_signed(to + 2 * at.H, candidate, n);
        store_first(to + 3 * at.H, h_n, n);
        if (again()) return;
      }
    }
    if (zones) z = fma(this->zone(row.zone, unit, n), splat<Real>(1) - z, z);  // k of the rest is kept as well
    const Vec<Stored> h = fma(z, row.old.load(unit, n), (splat<Real>(1) - z) * candidate);
    store_first(row.to + unit, h, n);
    if constexpr (in_16_bits<Stored>) {
      if (row.rounded) store_first(row.rounded + unit, h, n);
    }
  }
  void save_r(const ForwardRow<Stored>& row, int64_t block, Vec<Stored> r) const {
    if constexpr (trains) {
      if (row.saved) store_share(row.saved + block * L, r, units(block));
    }
  }

  // Find the rows of a step, and make their states operands: mask them where there is recurrent dropout, and round them.
  void begin_step(int64_t step) const {
    const Extras<Real>& extras = run.extras;
    const int64_t t = steps.time(step);
    for (int64_t i = 0; i < active_rows(t); ++i) {
      const int64_t b = share.row(i), number = steps.number(t, b);
      ForwardRow<Stored>& row = rows[i];
      row.saved = run.saved ? saved(t, b) : nullptr;
      row.zone = extras.zone ? extras.zone + number * extras.zone_row : nullptr;
      row.rounded = nullptr;
      if (!narrow<Stored> || run.output || again()) {
        row.old = this->h_prev(t, b);
        row.to = run.output ? run.output + number * run.output_row : nullptr;
      } else {
        const Real* begins = this->beginning(t, b);
        row.old = {begins ? begins : state_before(step, i), nullptr};
        row.to = state_before(step + 1, i), row.rounded = run.rounded + number * run.output_row;
      }
      const Real* m = extras.mask ? this->mask(b) : nullptr;
      if constexpr (!narrow<Stored>) {
        row.factor = row.old.exact;
        if (m) mask_row(row.old, m, operand(i)), row.factor = operand(i);
      } else {
        row.factor = operand(i);
        if (m) {
          if constexpr (in_16_bits<Stored>) {  // rounded before as well: so backward, which knows rounded states alone, will find it
            if (row.old.exact) round_row<Stored>(row.old.exact, s.H, operand(i));
            mask_row({nullptr, row.old.exact ? operand(i) : row.old.rounded}, m, masked);
          } else {
            mask_row(row.old, m, masked);
          }
          round_row<Stored>(masked, s.H, operand(i));
        } else if (row.old.exact) {
          round_row<Stored>(row.old.exact, s.H, operand(i));
        } else {
          row.factor = row.old.rounded;
        }
      }
    }
  }
  void mask_row(const State<Stored>& from, const Real* m, Real* to) const {
    for (int64_t unit = 0; unit < s.H; unit += L) {
      const int n = units(unit / L);
      store(to + unit, from.load(unit, n) * load_first(m + unit, n));
    }
  }

  // One step of Rows rows and Blocks blocks of units: the product with h_prev, and the gates on its registers.
  template <int Blocks>
  struct After {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    TILE void run(int64_t first) const {
      const Stored* h[Rows];
      Vec<Stored> sums[Rows][Blocks * 3];
      const Real* bias = me.biases() + me.at.bias_hn_at() + block * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rows[first + m].factor;
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, first + m, block + u);
          sums[m][3 * u] = load(x);
          sums[m][3 * u + 1] = load(x + L);
          sums[m][3 * u + 2] = load(bias + u * L);
        }
      }
      multiply<Stored, Rows, Blocks, 3>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
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
          const Vec<Stored> r = sums[m][3 * u], z = sums[m][3 * u + 1], h_n = sums[m][3 * u + 2];
          const Vec<Stored> x_n = load(me.gates_x_of(step, first + m, block + u) + 2 * L);
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
    TILE void run(int64_t first) const {
      const Stored* h[Rows];
      Vec<Stored> sums[Rows][Blocks * 2];
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rows[first + m].factor;
        UNROLL for (int u = 0; u < Blocks; ++u) {
          const Real* x = me.gates_x_of(step, first + m, block + u);
          sums[m][2 * u] = load(x);
          sums[m][2 * u + 1] = load(x + L);
        }
      }
      multiply<Stored, Rows, Blocks, 2>(sums, h, me.weights() + me.at.h_at() + block * me.at.h_block(),
                                      me.at.h_block(), me.at.H);
      ONCE for (int m = 0; m < Rows; ++m) {
        ONCE for (int u = 0; u < Blocks; ++u) {
          me.begin(first + m, block + u, sigmoid<Real>(sums[m][2 * u]), sigmoid<Real>(sums[m][2 * u + 1]));
        }
      }
    }
  };

  // r * m * h_prev for the second product, and z for after it.
  void begin(int64_t i, int64_t block, Vec<Stored> r, Vec<Stored> z) const {
    const int64_t unit = block * L;
    const int n = units(block);
    Real* to = rh + i * lies.h + unit;
    if constexpr (in_8_bits<Stored>) {
      const Vec<Stored> h = rows[i].old.load(unit, n);
      store(to, r * (run.extras.mask ? h * load_first(this->mask(share.row(i)) + unit, n) : h));
    } else {
      store(to, r * load_first(rows[i].factor + unit, n));
    }
    store(to + s.B * lies.h, z);
    save_r(rows[i], block, r);
  }
  // r * m * h_prev as an operand, once all of its units are there.
  void round_rh(int64_t t) const {
    if constexpr (narrow<Stored>) {
      for (int64_t i = 0; i < active_rows(t); ++i) round_row<Stored>(rh + i * lies.h, s.H, operand(i));
    }
  }
  const Stored* rh_row(int64_t i) const {
    if constexpr (narrow<Stored>) return operand(i);
    else return rh + i * lies.h;
  }
  // ... and the rest of the step, after it.
  void end(int64_t i, int64_t block, Vec<Stored> x_n, Vec<Stored> h_n) const {
    finish(rows[i], block, this->zones(), load(rh + (s.B + i) * lies.h + block * L), tanh<Real>(x_n + h_n), h_n);
  }

  template <int Blocks>
  struct BeforeCandidate {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    TILE void run(int64_t first) const {
      const Stored* h[Rows];
      Vec<Stored> sums[Rows][Blocks];
      const Real* bias = me.biases() + me.at.bias_hn_at() + block * L;
      UNROLL for (int m = 0; m < Rows; ++m) {
        h[m] = me.rh_row(first + m);
        UNROLL for (int u = 0; u < Blocks; ++u) sums[m][u] = load(bias + u * L);
      }
      multiply<Stored, Rows, Blocks, 1>(sums, h, me.weights() + me.at.n_at() + block * me.at.n_block(),
                                      me.at.n_block(), me.at.H);
      ONCE for (int m = 0; m < Rows; ++m) {
        ONCE for (int u = 0; u < Blocks; ++u) {
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
    TILE void run(int64_t first) const {
      me.template product<Rows, Blocks, 3>(first, block, 0, me.at.h_at(), me.at.h_block(), [&](int64_t i) { return me.rows[i].factor; });
    }
  };
  template <int Blocks>
  struct ProductBeforeGates {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    TILE void run(int64_t first) const {
      me.template product<Rows, Blocks, 2>(first, block, 0, me.at.h_at(), me.at.h_block(), [&](int64_t i) { return me.rows[i].factor; });
    }
  };
  template <int Blocks>
  struct ProductBeforeCandidate {
    const ForwardMember& me;
    int64_t t, step, block;

    template <int Rows>
    TILE void run(int64_t first) const {
      me.template product<Rows, Blocks, 1>(first, block, 2, me.at.n_at(), me.at.n_block(),
                                           [&](int64_t i) { return me.rh_row(i); });
    }
  };

  template <int Rows, int Blocks, int Gates, class From>
  void product(int64_t first, int64_t block, int gate_0, int64_t w_at, int64_t w_block, const From& from) const {
    const Stored* h[Rows];
    Vec<Stored> sums[Rows][Blocks * Gates];
    UNROLL for (int m = 0; m < Rows; ++m) {
      h[m] = from(first + m);
      UNROLL for (int v = 0; v < Blocks * Gates; ++v) sums[m][v] = splat<Real>(0);
    }
    multiply<Stored, Rows, Blocks, Gates>(sums, h, weights() + w_at + block * w_block, w_block, at.H);
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Gates; ++v) {
        store(row_of(products, first + m, block + v / Gates) + (gate_0 + v % Gates) * L, sums[m][v]);
      }
    }
  }

  void step_with_norm(int64_t t, int64_t step) const {
    const int64_t n = active_rows(t);
    const Real *gain = biases() + at.gain_h_at(), *bias = biases() + at.bias_hn_at();
    if (at.after) all_blocks<ProductAfter>(t, step);
    else all_blocks<ProductBeforeGates>(t, step);
    for (int64_t i = 0; i < n; ++i) {
      Real* row = row_of(products, i, 0);
      normalise_row(t, i, row, 0, 2, 4, 0);
      if (at.after) normalise_row(t, i, row, 2, 1, 4, 1);
      for (int64_t block = 0; block < at.blocks; ++block) {
        const Real *of_x = gates_x_of(step, i, block), *of_h = row + block * 3 * L, *g = gain + block * 3 * L;
        const Vec<Stored> r = sigmoid<Real>(fma(load(of_h), load(g), load(of_x)));
        const Vec<Stored> z = sigmoid<Real>(fma(load(of_h + L), load(g + L), load(of_x + L)));
        if (at.after) {
          const Vec<Stored> h_n = fma(load(of_h + 2 * L), load(g + 2 * L), load(bias + block * L));
          save_r(rows[i], block, r);
          finish(rows[i], block, this->zones(), z, tanh<Real>(fma(r, h_n, load(of_x + 2 * L))), h_n);
        } else {
          begin(i, block, r, z);
        }
      }
    }
    if (at.after) return;
    round_rh(t);
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
    if (n == 1) return few_rows<Tile, 1>(t, step);
    if (n == 2) return few_rows<Tile, 2>(t, step);
    for (int64_t block = share.block_0; block < share.block_1; ++block) {
      for_tiles<max_rows>(n, Tile<1>{*this, t, step, block});
    }
  }

  // (Tiles of this many rows alone: the compiler makes code for each.) x_first: the step, where x's part isn't there yet.
  template <template <int> class Tile, int Rows>
  void few_rows(int64_t t, int64_t step, int64_t x_first = -1) const {
    constexpr int together = 4 / Rows;
    const int64_t blocks = share.block_1 - share.block_0, tiles = ceil_div(blocks, together);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t tile = (turn + step) % 2 ? tiles - 1 - i : i;
      const int64_t block = share.block_0 + tile * together, end = smaller(block + together, share.block_1);
      if (end - block == together) {
        few_rows_of<Tile, Rows, together>(t, step, x_first, block);
      } else {
        for (int64_t one = block; one < end; ++one) few_rows_of<Tile, Rows, 1>(t, step, x_first, one);
      }
    }
  }
  template <template <int> class Tile, int Rows, int Blocks>
  void few_rows_of(int64_t t, int64_t step, int64_t x_first, int64_t block) const {
    if (x_first >= 0) project_of<Blocks>(x_first, x_first + 1, block).template run<Rows>(0);
    Tile<Blocks>{*this, t, step, block}.template run<Rows>(0);
  }

  void step_of_rows(int64_t t, int64_t step, int64_t first) const {
    begin_step(first + step);
    if (at.norm) {
      step_with_norm(t, step);
    } else if (at.after) {
      all_blocks<After>(t, step);
    } else {
      all_blocks<BeforeGates>(t, step);
      round_rh(t);
      all_blocks<BeforeCandidate>(t, step);
    }
  }

  // A single step of few rows, as in a stream: x's part of a block right before the block itself, so that the way
  // through the weights can turn round from one call to the next.
  bool alone(int64_t first, int64_t last) const {
    const int64_t n = active_rows(steps.time(first));
    return last - first == 1 && at.after && !at.norm && (n == 1 || n == 2);
  }

  void step_alone(int64_t first) const {
    const int64_t t = steps.time(first), n = active_rows(t);
    begin_step(first);
    round_x(first, first + 1);
    if (n == 1) few_rows<After, 1>(t, 0, first);
    else few_rows<After, 2>(t, 0, first);
  }

  // x's part and the steps themselves, so many at a time that what lies between stays in a near cache.
  int64_t chunk_of(int64_t values) const { return values && values < gates_x_values ? gates_x_values / values : 1; }

  int64_t stretch(int64_t first, int64_t last) {  // one of them; returns where it ends
    last = smaller(first + chunk_of(share.rows * columns), last);
    if (alone(first, last)) {
      step_alone(first);
      ++turn;
    } else {
      project(first, last);
      for (int64_t step = first; step < last; ++step) step_of_rows(steps.time(step), step - first, first);
    }
    return last;
  }

  // All of them, as one of those who share the units. A step's rows are found by whoever does a piece of it.
  // False: this thread is to go home.
  bool all_steps(Worker& worker, const Cut& cut) {
    int64_t begun = -1, rounded = -1;
    const auto each = [&](int64_t step, const auto& work) {
      return worker.phase(cut.pieces, [&](int piece) {
        share = cut.share(s, at.blocks, piece);
        if (begun != step) begin_step(step), begun = step;
        work();
      });
    };
    const int64_t chunk = chunk_of(share.rows * columns);
    for (int64_t first = 0; first < s.T; first += chunk) {
      const int64_t last = smaller(first + chunk, s.T);
      if (alone(first, last)) {
        if (!each(first, [&] { step_alone(first); })) return false;
        ++turn;
        continue;
      }
      if (!each(first, [&] { project(first, last); })) return false;
      for (int64_t step = first; step < last; ++step) {
        const int64_t t = steps.time(step), i = step - first;
        if (at.after) {
          if (!each(step, [&] { all_blocks<After>(t, i); })) return false;
        } else {
          if (!each(step, [&] { all_blocks<BeforeGates>(t, i); })) return false;
          const auto end = [&] {
            if (rounded != step) round_rh(t), rounded = step;
            all_blocks<BeforeCandidate>(t, i);
          };
          if (!each(step, end)) return false;
        }
      }
    }
    return worker.phase(cut.pieces, [&](int piece) {
      share = cut.share(s, at.blocks, piece);
      last_states();
    });
  }

  void last_states() const {
    if (!run.h_n) return;
    for (int64_t i = 0; i < share.rows; ++i) {
      const int64_t b = share.row(i), sequence = steps.sequence(b);
      const Real* from = run.h_0 + sequence * run.h_0_row;
      int64_t t = s.T - 1;
      while (t >= 0 && steps.active(t) <= b) --t;  // its last step
      if (t >= 0 && run.output) from = run.output + steps.number(steps.reverse ? 0 : t, b) * run.output_row;
      else if (t >= 0) from = state_before(steps.reverse ? s.T : t + 1, i);
      const int64_t begin = share.block_0 * L, end = smaller(share.block_1 * L, s.H);
      Real* to = run.h_n + sequence * s.H;
      for (int64_t unit = begin; unit < end; ++unit) to[unit] = from[unit];
    }
  }
};

// for_all, for_states: whose gates_x and rh are used, and whose states.
template <class Stored>
ForwardMember<Stored> forward_member(const Sizes& sizes, const Plan& plan, const Forward<Stored>& run, const Share& share,
                                     Sum<Stored>* mine, Sum<Stored>* for_all, Sum<Stored>* for_states, int64_t first_saved) {
  const ForwardLayout<Stored> lies(sizes);
  const int64_t turn = run.weights->turn.load(std::memory_order_relaxed);
  Sum<Stored>* operands = mine + lies.gates_x + lies.shared();
  Sum<Stored>* masked = operands + lies.operands;
  Sum<Stored>* rows = masked + lies.masked + lies.products;
  return {{sizes, run, {sizes, plan, run.reverse}, share},
          Layout<Stored>(sizes.I, sizes.H, sizes.reset, sizes.norm),
          lies,
          reinterpret_cast<ForwardRow<Stored>*>(rows),
          for_all + lies.gates_x,
          for_states + lies.gates_x + lies.shared_rh,
          masked,
          masked + lies.masked,
          for_all,
          reinterpret_cast<Stored*>(operands),
          reinterpret_cast<Stored*>(rows + lies.rows),
          gates_x_row<Stored>(ceil_div(sizes.H, lanes<Stored>)),
          turn,
          first_saved};
}

// A piece's rows through all steps, a stretch at a time: between two of them another thread may go on with it.
template <class Stored>
void ForwardJob<Stored>::by_rows(int place, Real* mine) const {
  const int64_t T = sizes.T, blocks = ceil_div(sizes.H, lanes<Stored>);
  Worker(shared[0], place).lanes(directions * cut.pieces, T + 1, [&](int lane, int64_t from) {
    const Share share = share_rows(sizes, blocks, lane % cut.pieces, cut.pieces);
    const int direction = lane / cut.pieces;
    Real* for_states = shared[0].alone() ? mine : scratch + direction * scratch_each;
    auto me = forward_member(sizes, plan, runs[direction], share, mine, mine, for_states, int64_t{-1});
    do {
      if (from < T) from = me.stretch(from, T);
    } while (from < T && shared[0].alone());
    if (from < T) return from;
    me.last_states();
    return T + 1;
  });
}

template <class Stored>
void ForwardJob<Stored>::by_units(int place, Real* mine) const {
  const int64_t blocks = ceil_div(sizes.H, lanes<Stored>);
  for (int i = 0; i < directions; ++i) {
    const int direction = (place + i) % directions;  // its own first
    Worker worker(shared[direction], place_in(direction, directions, place, cut.places));
    Real* for_all = scratch + direction * scratch_each;
    auto me = forward_member(sizes, plan, runs[direction], share_units(sizes, blocks, 0, 1), mine, for_all, for_all, int64_t{-1});
    if (!me.all_steps(worker, cut)) return;
  }
}

inline int forward_threads(const Sizes& s, const Plan& plan, int directions) {
  return useful_threads(s, directions, directions * plan.rows * 3 * s.H * (s.I + s.H));
}

template <class Stored>
void forward(const Sizes& sizes, const Plan& plan, const Forward<Stored>* runs, int directions, int threads,
             Sum<Stored>* scratch, int64_t scratch_each) {
  const Cut cut(sizes, ceil_div(sizes.H, lanes<Stored>), directions, threads);
  const int lanes_of_rows = cut.by_units ? 0 : directions * cut.pieces;
  Shared shared[2] = {{threads, cut.by_units ? cut.places : threads, lanes_of_rows}, {threads, cut.places}};
  ForwardJob<Stored> job{sizes, plan, runs, directions, scratch, scratch_each, cut, shared};
  run_team(threads, ForwardJob<Stored>::work, &job);
}
