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
