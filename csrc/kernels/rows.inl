// Steps and rows: which there are, where their values lie, and who of a team works on them. Part of kernels.inl.

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

// A piece of one direction: some rows, where there are enough of them, or some units of all rows, where a step is long enough to
// pay for a meeting. Rows lie side by side, row(0), row(1) ..., or, where sequences differ in length, dealt out like cards, so
// that every piece has long and short ones.
struct Share {
  int64_t row_0, rows, stride, block_0, block_1;

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

inline Share share_rows(const Sizes& s, int64_t blocks, int piece, int pieces) {
  if (s.batch_sizes && pieces > 1) {
    return {piece, piece < s.B ? ceil_div(s.B - piece, pieces) : 0, pieces, 0, blocks};
  }
  const int64_t row_0 = s.B * piece / pieces;
  return {row_0, s.B * (piece + 1) / pieces - row_0, 1, 0, blocks};
}

inline Share share_units(const Sizes& s, int64_t blocks, int piece, int pieces) {
  return {0, s.B, 1, blocks * piece / pieces, blocks * (piece + 1) / pieces};
}

// How the directions of a call are cut into pieces for so many threads, each direction in the same way.
struct Cut {
  bool by_units;
  int pieces;  // of a direction
  int parts;   // of what isn't done step by step
  int places;  // threads that begin with a direction; those of the other one help when theirs is done

  Cut(const Sizes& s, int64_t blocks, int directions, int threads)
      : places(static_cast<int>(ceil_div(threads, directions))) {
    by_units = splits_units(s, places);
    // In each piece whole tiles of rows; or blocks of units as they are taken together, and a step of some ten microseconds.
    const int64_t most = by_units ? smaller(blocks / 4, 3 * s.B * s.H * s.H / 400000) : s.B / max_rows;
    pieces = static_cast<int>(smaller(ceil_div(pieces_of(threads, directions * most), directions), int64_t{Shared::most_places / 2}));
    parts = threads == 1 ? 1 : 2 * places;
  }
  Share share(const Sizes& s, int64_t blocks, int piece) const {
    return by_units ? share_units(s, blocks, piece, pieces) : share_rows(s, blocks, piece, pieces);
  }
};

// The place of a thread in one of the directions.
inline int place_in(int direction, int directions, int place, int places) {
  if (directions == 1) return place;
  return place % 2 == direction ? place / 2 : places + place / 2;
}

// A state somewhere: as it is, or rounded to what is stored.
template <class Stored>
struct State {
  const Sum<Stored>* exact;
  const Stored* rounded;  // null where `exact` isn't

  Vec<Stored> load(int64_t unit, int n) const {
    if constexpr (in_16_bits<Stored>) {
      if (rounded) return load_first(rounded + unit, n);
    }
    return load_first(exact + unit, n);
  }
};

// A part of a team's scratch, which is counted in sums.
template <class Stored>
constexpr int64_t as_sums(int64_t values) {
  return padded(ceil_div(values * static_cast<int64_t>(sizeof(Stored)), static_cast<int64_t>(sizeof(Sum<Stored>))), 16);
}

// What both ways know of a direction: where the values of a row lie.
template <class Stored, class Run>
struct Member {
  using Real = Sum<Stored>;
  static constexpr int L = lanes<Stored>;
  const Sizes& s;
  const Run& run;
  Steps steps;
  Share share;

  int units(int64_t block) const { return static_cast<int>(smaller<int64_t>(L, s.H - block * L)); }
  const Input<Stored>* x(int64_t t, int64_t b) const { return run.x + steps.at(t, b, run.x_step, run.x_row); }

  // Whether the state starts anew on the way to row (t, b); where its sequence begins, only if that row itself is marked.
  bool anew(int64_t t, int64_t b) const {
    if (!run.extras.resets) return false;
    if (steps.reverse) {
      if (steps.first(t, b)) return false;
      ++t;
    }
    return run.extras.resets[t * run.extras.resets_step + steps.sequence(b) * run.extras.resets_row] != 0;
  }
  // Where the first step of a sequence, or one after a reset, begins; null elsewhere.
  const Real* beginning(int64_t t, int64_t b) const {
    if (anew(t, b)) return run.extras.fresh + steps.sequence(b) * run.extras.fresh_row;
    if (steps.first(t, b)) return run.h_0 + steps.sequence(b) * run.h_0_row;
    return nullptr;
  }
  // ... and the state before any step, with the whole output there.
  State<Stored> h_prev(int64_t t, int64_t b) const {
    if (const Real* begins = beginning(t, b)) return {begins, nullptr};
    return h_at(run, steps.number(steps.before(t), b));
  }
  static State<Stored> h_at(const Forward<Stored>& run, int64_t number) {
    if (run.output) return {run.output + number * run.output_row, nullptr};
    return {nullptr, run.rounded + number * run.output_row};
  }
  static State<Stored> h_at(const Backward<Stored>& run, int64_t number) {
    if constexpr (narrow<Stored>) return {nullptr, run.output + number * run.output_row};
    else return {run.output + number * run.output_row, nullptr};
  }
  const Real* mask(int64_t b) const { return run.extras.mask ? run.extras.mask + steps.sequence(b) * s.H : nullptr; }

  // k, the part of the old state that a unit keeps whatever its gates say.
  Vec<Stored> zone(const uint8_t* drawn, int64_t unit, int n) const {
    return drawn ? load_bytes<Real>(drawn + unit, n) : splat(run.extras.zone_rate);
  }
  bool zones() const { return run.extras.zone || run.extras.zone_rate != 0; }
};

// A team of this size is worth waking for so many multiply-adds.
inline int useful_threads(const Sizes& s, int directions, int64_t multiply_adds) {
  const int64_t enough = multiply_adds / 200000;  // some microseconds each
  int64_t most = smaller<int64_t>(s.threads, enough);
  if (directions * s.B < most && !splits_units(s, static_cast<int>(ceil_div(most, directions)))) {
    most = directions * s.B;
  }
  return static_cast<int>(most < 1 ? 1 : most);
}
