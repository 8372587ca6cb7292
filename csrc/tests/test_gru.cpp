// The kernels against the equations written out in double, at odd sizes, on every instruction set of this machine.
// A program of its own, so that it runs under the sanitizers and an emulator: `make test-native`, `make sanitize`.
//
// All that gru.h offers in any mixture would be millions of cases: they are drawn, always the same ones. A check that
// fails names its case whole.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "../gru.h"
#include "../team.h"
#include "checks.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// The library's scratch and packed weights, the only memory here that asks for an alignment, start as NaN (all bits
// set): a value that is read before it was written shows. And they can run short.
int allocations_left = -1;  // negative: no end

void* operator new(std::size_t size, std::align_val_t to) {
  if (allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  const std::size_t unit = static_cast<std::size_t>(to);
  void* memory = std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
  if (!memory) throw std::bad_alloc();
  return std::memset(memory, 0xff, size);
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }

using namespace tidegate;

namespace {

template <class Real>
using Values = std::vector<Real>;

int64_t draw(int64_t n) { return generator() % n; }
bool coin() { return draw(2); }
double normal() { return std::normal_distribution<double>()(generator); }

template <class Real>
Values<Real> normal(int64_t n, double scale = 1, double middle = 0) {
  Values<Real> v(static_cast<size_t>(n));
  for (auto& value : v) value = static_cast<Real>(middle + scale * normal());
  return v;
}

// NaN in everything that must be overwritten: a value that was forgotten shows, and so does one too many.
template <class Real>
Values<Real> unset(int64_t n) {
  return Values<Real>(static_cast<size_t>(n), std::numeric_limits<Real>::quiet_NaN());
}

// n rows of `width` values, `apart` from each other; what lies between is nobody's.
template <class Real>
Values<Real> matrix(int64_t n, int64_t width, int64_t apart, double scale = 1) {
  auto v = unset<Real>(n * apart);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < width; ++k) v[i * apart + k] = static_cast<Real>(scale * normal());
  }
  return v;
}

// What nobody gave is an empty vector, and a null pointer to the kernels.
template <class Real>
const Real* pointer(const Values<Real>& v, int64_t at = 0) {
  return v.empty() ? nullptr : v.data() + at;
}
template <class Real>
Real* pointer(Values<Real>& v, int64_t at = 0) {
  return v.empty() ? nullptr : v.data() + at;
}

// ------------------------------------------------------------------------------------------------ rounding

using Doubles = std::vector<double>;

float widened(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
double to_8_bits_of_mantissa(double v) {  // bfloat16's, the leading one among them
  int exponent;
  const double mantissa = std::frexp(v, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
}
bf16 narrowed(double v) {
  const float value = static_cast<float>(to_8_bits_of_mantissa(v));
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return {static_cast<uint16_t>(bits >> 16)};
}

// A row as an operand of a product, in double.
template <class Stored, class Value>
void round_row(Value* row, int64_t n) {
  if constexpr (sizeof(Stored) == 2) {
    for (int64_t i = 0; i < n; ++i) row[i] = static_cast<Value>(to_8_bits_of_mantissa(row[i]));
  } else if constexpr (sizeof(Stored) == 1) {
    float most = 0;
    for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(static_cast<float>(row[i])));
    const float scale = most / 127;
    for (int64_t i = 0; i < n && scale > 0; ++i) row[i] = static_cast<Value>(std::nearbyint(static_cast<float>(row[i]) / scale) * scale);
  }
}
template <class Stored>
void round_row(Doubles& row) {
  round_row<Stored>(row.data(), static_cast<int64_t>(row.size()));
}

// ------------------------------------------------------------------------------------------------ cases

enum class Layout { alike, packed, padded, end_to_end };  // of the rows
enum class Zone { none, rate, bytes };

struct Case {
  int64_t T, B, I, H;
  int from = 0, to = 1;  // the directions: 0 forwards, 1 backwards
  Layout layout = Layout::alike;
  Reset reset = Reset::after;
  bool norm = false, resets = false, mask = false, d_saved = false;
  Zone zone = Zone::none;
  bool b_ih = true, b_hh = true, h_0 = true, fresh = true, d_output = true, d_h_n = true;  // given, or null
  bool gaps = false;  // between rows; and what may be [B, T, ...] as well as [T, B, ...] is

  int64_t D() const { return to - from; }
  std::string name() const {
    const std::pair<bool, const char*> words[] = {
        {from == 0, "forwards"},
        {to == 2, "backwards"},
        {layout == Layout::packed, "packed"},
        {layout == Layout::padded, "padded"},
        {layout == Layout::end_to_end, "end to end"},
        {gaps, "gaps"},
        {true, reset == Reset::after ? "after" : "before"},
        {norm, "norm"},
        {resets, "resets"},
        {mask, "mask"},
        {zone == Zone::rate, "zone rate"},
        {zone == Zone::bytes, "zone bytes"},
        {d_saved, "d_saved"},
        {!b_ih, "no b_ih"},
        {!b_hh, "no b_hh"},
        {!h_0, "no h_0"},
        {!fresh, "no fresh"},
        {!d_output, "no d_output"},
        {!d_h_n, "no d_h_n"},
    };
    std::string all;
    for (const auto& size : {std::make_pair("T", T), {"B", B}, {"I", I}, {"H", H}}) {
      all += size.first + std::to_string(size.second) + " ";
    }
    for (const auto& word : words) all += word.first ? word.second + std::string(" ") : "";
    return all + isa_name();
  }
};

Case drawn(int64_t T, int64_t B, int64_t I, int64_t H) {
  Case c{T, B, I, H};
  const int64_t way = draw(4);  // both directions twice as often as either
  c.from = way == 1, c.to = way == 0 ? 1 : 2;
  c.layout = static_cast<Layout>(draw(4));
  c.reset = coin() ? Reset::after : Reset::before;
  c.gaps = coin();
  c.b_ih = draw(4), c.b_hh = draw(4), c.h_0 = draw(4), c.d_output = draw(8), c.d_h_n = draw(4);
  if (draw(6) == 0) return c;  // nothing that torch.nn.GRU can't do
  c.norm = coin(), c.resets = coin(), c.mask = coin(), c.d_saved = coin();
  c.zone = static_cast<Zone>(draw(3));
  c.fresh = draw(4);
  return c;
}

template <class Real>
struct Data {
  Values<int64_t> lengths, starts, batch_sizes, offsets;
  int64_t rows;  // numbers of rows, those of padding among them
  // Strides, as gru.h names them; h_row: of every state that is given.
  int64_t x_step, x_row, d_output_step, d_output_row, output_row, zone_row, resets_step, resets_row;
  int64_t h_row, w_ih_row, w_hh_row;
  Values<uint8_t> resets, zone;
  Values<Real> x, d_output;
  Values<Real> w_ih[2], w_hh[2], b_ih[2], b_hh[2], g_ih[2], g_hh[2], h_0[2], fresh[2], mask[2], d_h_n[2], d_saved[2];
  Real zone_rate = 0;

  explicit Data(const Case& c) {
    lengths.assign(c.B, c.T);
    if (c.layout != Layout::alike) {
      for (auto& length : lengths) length = draw(4) == 0 ? 0 : coin() ? c.T : draw(c.T + 1);
    }
    if (c.layout == Layout::packed && c.B > 0) {
      lengths[0] = c.T;
      std::sort(lengths.rbegin(), lengths.rend());
    }
    lay_out(c);
    const int64_t H = c.H, D = c.D();
    x = rows_of(c.I, x_step, x_row);
    if (c.d_output) d_output = rows_of(D * H, d_output_step, d_output_row);
    if (c.resets) {
      resets.resize(c.T * c.B + (c.gaps ? c.B : 0));
      for (auto& mark : resets) mark = draw(3) == 0 ? 1 + draw(255) : 0;  // any number but 0 is a mark
    }
    if (c.zone == Zone::bytes) {
      zone.assign(rows * zone_row, 255);
      zone_rate = std::numeric_limits<Real>::quiet_NaN();  // not read: each unit has its own
      each_row([&](int64_t t, int64_t b) {
        for (int64_t k = 0; k < D * H; ++k) zone[number(t, b) * zone_row + k] = coin();
      });
    } else if (c.zone == Zone::rate) {
      zone_rate = static_cast<Real>(0.3);
    }
    for (int d = c.from; d < c.to; ++d) {
      w_ih[d] = matrix<Real>(3 * H, c.I, w_ih_row, 0.5);
      w_hh[d] = matrix<Real>(3 * H, H, w_hh_row, 1 / std::sqrt(H + 1.0));
      if (c.b_ih) b_ih[d] = normal<Real>(3 * H);
      if (c.b_hh) b_hh[d] = normal<Real>(3 * H);
      if (c.norm) g_ih[d] = normal<Real>(3 * H, 0.5, 1), g_hh[d] = normal<Real>(3 * H, 0.5, 1);
      if (c.h_0) h_0[d] = matrix<Real>(c.B, H, h_row);
      if (c.fresh) fresh[d] = matrix<Real>(c.B, H, h_row);
      if (c.d_h_n) d_h_n[d] = matrix<Real>(c.B, H, h_row);
      if (c.mask) {
        mask[d] = normal<Real>(c.B * H);
        for (auto& m : mask[d]) m = draw(3) ? Real(1.5) : 0;
      }
      if (c.d_saved) {
        d_saved[d] = unset<Real>(rows * 4 * H);
        each_row([&](int64_t t, int64_t b) {
          for (int64_t k = 0; k < 4 * H; ++k) d_saved[d][number(t, b) * 4 * H + k] = static_cast<Real>(normal());
        });
      }
    }
  }

  // Steps first ... last - 1 of sequence b in direction d: what a call of its own is given for them.
  Data(const Case& c, const Data& whole, int64_t b, int64_t first, int d, int whole_from, Values<Real> state)
      : lengths{c.T} {
    lay_out(c);
    const int64_t H = c.H;
    x.resize(c.T * c.I), h_0[d] = state, zone_rate = whole.zone_rate;
    for (int64_t t = 0; t < c.T; ++t) {
      std::copy_n(pointer(whole.x, whole.at(first + t, b, whole.x_step, whole.x_row)), c.I, x.begin() + t * c.I);
      if (c.resets) resets.push_back(whole.marked(first + t, b));
      if (c.zone == Zone::bytes) {
        const auto from = whole.zone.begin() + whole.number(first + t, b) * whole.zone_row + (d - whole_from) * H;
        zone.insert(zone.end(), from, from + H);
      }
    }
    w_ih[d] = whole.w_ih[d], w_hh[d] = whole.w_hh[d], b_ih[d] = whole.b_ih[d], b_hh[d] = whole.b_hh[d];
    g_ih[d] = whole.g_ih[d], g_hh[d] = whole.g_hh[d];
    w_ih_row = whole.w_ih_row, w_hh_row = whole.w_hh_row;
    if (c.mask) mask[d].assign(whole.mask[d].begin() + b * H, whole.mask[d].begin() + (b + 1) * H);
    if (c.fresh) fresh[d] = whole.state(whole.fresh[d], b, H);
  }

  int64_t number(int64_t t, int64_t b) const {
    if (!starts.empty()) return starts[b] + t;
    return (offsets.empty() ? t * static_cast<int64_t>(lengths.size()) : offsets[t]) + b;
  }
  int64_t at(int64_t t, int64_t b, int64_t step, int64_t row) const {
    return starts.empty() && offsets.empty() ? t * step + b * row : number(t, b) * row;
  }
  bool marked(int64_t t, int64_t b) const { return !resets.empty() && resets[t * resets_step + b * resets_row] != 0; }
  Values<Real> state(const Values<Real>& from, int64_t b, int64_t H) const {
    return from.empty() ? Values<Real>(H, 0) : Values<Real>(from.begin() + b * h_row, from.begin() + b * h_row + H);
  }

  template <class Visit>
  void each_row(const Visit& visit) const {
    for (size_t b = 0; b < lengths.size(); ++b) {
      for (int64_t t = 0; t < lengths[b]; ++t) visit(t, static_cast<int64_t>(b));
    }
  }

  // The weights, and what bfloat16 takes as it is, are numbers that `Stored` has.
  template <class Stored>
  void round(const Case& c) {
    if (sizeof(Stored) == 2) round_row<Stored>(x.data(), static_cast<int64_t>(x.size()));
    for (int d = c.from; d < c.to; ++d) {
      for (int64_t i = 0; i < 3 * c.H; ++i) {
        round_row<Stored>(w_ih[d].data() + i * w_ih_row, c.I);
        round_row<Stored>(w_hh[d].data() + i * w_hh_row, c.H);
      }
    }
  }

 private:
  void lay_out(const Case& c) {
    const int64_t T = c.T, B = c.B, I = c.I, out = c.D() * c.H, gap = c.gaps ? 3 : 0;
    rows = 0;
    if (c.layout == Layout::packed) {
      for (int64_t t = 0; t < T; ++t) {
        offsets.push_back(rows);
        batch_sizes.push_back(std::count_if(lengths.begin(), lengths.end(), [t](int64_t l) { return l > t; }));
        rows += batch_sizes[t];
      }
    } else if (c.layout == Layout::end_to_end) {
      std::vector<int64_t> order(B);
      for (int64_t b = 0; b < B; ++b) order[b] = b;
      std::shuffle(order.begin(), order.end(), generator);
      starts.resize(B);
      for (int64_t b : order) starts[b] = rows, rows += lengths[b] + (c.gaps ? draw(2) : 0);
    } else {
      rows = T * B;
    }
    const bool by_number = c.layout == Layout::packed || c.layout == Layout::end_to_end;
    const auto strides = [&](int64_t width, int64_t& step, int64_t& row) {
      row = width + gap, step = by_number ? row : B * row;
      if (c.gaps && !by_number) step = width + gap, row = T * step;
    };
    strides(I, x_step, x_row), strides(out, d_output_step, d_output_row);
    output_row = zone_row = out + gap, h_row = c.H + gap, w_ih_row = I + gap, w_hh_row = c.H + gap;
    resets_step = c.gaps ? 1 : B, resets_row = c.gaps ? T + 1 : 1;
  }

  Values<Real> rows_of(int64_t width, int64_t step, int64_t row) const {
    auto v = unset<Real>(rows * std::min(step, row));
    each_row([&](int64_t t, int64_t b) {
      for (int64_t k = 0; k < width; ++k) v[at(t, b, step, row) + k] = static_cast<Real>(normal());
    });
    return v;
  }
};

// ------------------------------------------------------------------------------------------------ runs

enum Kind { h_n, saved, norms, d_x, d_h_0, d_fresh, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_g_ih, d_g_hh, kinds };
const char* const kind_names[kinds] = {"h_n",    "saved",  "norms",  "d_x",    "d_h_0",  "d_fresh",
                                       "d_w_ih", "d_w_hh", "d_b_ih", "d_b_hh", "d_g_ih", "d_g_hh"};

template <class Real>
struct Results {
  Values<Real> output, of[2][kinds];

  template <class Given>
  Results(const Case& c, const Data<Given>& data, unsigned asked = ~0u)
      : output(unset<Real>(data.rows * data.output_row)) {
    const int64_t H = c.H, state = c.B * H, gains = c.norm ? 3 * H : 0;
    const int64_t of_saved = data.rows * slots(c.norm) * H, of_norms = c.norm ? data.rows * 4 : 0;
    const int64_t sizes[kinds] = {state,       of_saved,  of_norms, data.rows * c.I, state, state,
                                  3 * H * c.I, 3 * H * H, 3 * H,    3 * H,           gains, gains};
    for (int d = c.from; d < c.to; ++d) {
      for (int kind = 0; kind < kinds; ++kind) {
        if (asked >> kind & 1) of[d][kind] = unset<Real>(sizes[kind]);
      }
    }
  }

  // All of them: visit(name, these values, and those of `other`).
  template <class Other, class Visit>
  void with(const Results<Other>& other, const Visit& visit) const {
    visit("output", output, other.output);
    for (int d : {0, 1}) {
      for (int kind = 0; kind < kinds; ++kind) visit(kind_names[kind], of[d][kind], other.of[d][kind]);
    }
  }
};

constexpr unsigned of_forward = 1u << h_n | 1u << saved | 1u << norms;

struct Way {
  int threads;
  unsigned asked = ~0u;    // a bit for every kind; backwards is run where anything of it is asked
  int64_t turn = 0;        // steps that the packed weights have seen before
  bool elsewhere = false;  // another instruction set is chosen between the two ways
  bool again() const { return !(asked >> saved & 1); }
  bool trains() const { return asked & ~(1u << h_n | 1u << saved | 1u << norms); }
  std::string name() const {
    std::string all = std::to_string(threads) + " threads";
    for (int kind = 0; kind < kinds; ++kind) all += asked >> kind & 1 ? "" : std::string(", no ") + kind_names[kind];
    return all + (elsewhere ? ", elsewhere" : "");
  }
};

// `rounded` and `saved` in 16 bits, as numbers: those of rows that there are.
struct In16Bits {
  Values<bf16> output, saved[2];

  void into(const Case& c, const Data<float>& data, Results<float>& r) const {
    const int64_t H = c.H, width = slots(c.norm) * H;
    data.each_row([&](int64_t t, int64_t b) {
      const int64_t row = data.number(t, b);
      for (int64_t k = 0; k < c.D() * H && !output.empty(); ++k) {
        r.output[row * data.output_row + k] = widened(output[row * data.output_row + k]);
      }
      for (int d = c.from; d < c.to; ++d) {
        for (int64_t k = 0; k < width && !saved[d].empty(); ++k) {
          const bf16 v = saved[d][row * width + k];
          r.of[d][Kind::saved][row * width + k] = k < 2 * H   ? v.bits / 65535.0f
                                                  : k < 3 * H ? static_cast<int16_t>(v.bits) / 32767.0f
                                                              : widened(v);
        }
      }
    });
  }
};

template <class Stored, class Real>
void run(const Case& c, const Data<Real>& data, const Way& way, Results<Real>& r) {
  static_assert(std::is_same<Sum<Stored>, Real>::value, "data are what is added up");
  constexpr bool in_16_bits = sizeof(Stored) == 2, in_8_bits = sizeof(Stored) == 1;
  const bool by_length = c.layout == Layout::padded || c.layout == Layout::end_to_end;
  const Sizes sizes{c.T, c.B, c.I, c.H, pointer(data.batch_sizes), by_length ? pointer(data.lengths) : nullptr,
                    pointer(data.starts), c.reset, c.norm, way.threads};
  const int64_t H = c.H;
  const bool rounds = in_16_bits && way.trains();
  Values<Input<Stored>> x;
  In16Bits narrow;
  if constexpr (in_16_bits) {
    for (Real value : data.x) x.push_back(narrowed(value));
    if (rounds) narrow.output.resize(r.output.size());
  }
  std::vector<Forward<Stored>> forwards;
  std::vector<Backward<Stored>> backwards;
  std::vector<std::unique_ptr<Packed<Stored>>> all_packed;
  for (int d = c.from; d < c.to; ++d) {
    auto& of = r.of[d];
    const int64_t column = (d - c.from) * H;
    const Weights<Real> weights{pointer(data.w_ih[d]), pointer(data.w_hh[d]), pointer(data.b_ih[d]),
                                pointer(data.b_hh[d]), pointer(data.g_ih[d]), pointer(data.g_hh[d]),
                                data.w_ih_row,         data.w_hh_row};
    const Extras<Real> extras{pointer(data.resets),   data.resets_step, data.resets_row,
                              pointer(data.fresh[d]), data.h_row,       pointer(data.mask[d]),
                              pointer(data.zone, column), data.zone_row, data.zone_rate};
    all_packed.push_back(std::make_unique<Packed<Stored>>(weights, c.I, H, c.reset, c.norm, way.threads));
    const Packed<Stored>* packed = all_packed.back().get();
    packed->turn = way.turn;
    if (in_16_bits) narrow.saved[d].resize(of[saved].size());
    Forward<Stored> f{};
    if constexpr (in_16_bits) f.x = pointer(x);
    else f.x = pointer(data.x);
    f.x_step = data.x_step, f.x_row = data.x_row, f.weights = packed;
    f.h_0 = pointer(data.h_0[d]), f.h_0_row = data.h_row;
    if (rounds) f.rounded = reinterpret_cast<Stored*>(pointer(narrow.output, column));
    else f.output = pointer(r.output, column);
    f.output_row = data.output_row;
    f.h_n = pointer(of[h_n]), f.norms = pointer(of[norms]);
    if constexpr (in_16_bits) f.saved = pointer(narrow.saved[d]);
    else if constexpr (!in_8_bits) f.saved = pointer(of[saved]);
    f.reverse = d == 1, f.extras = extras;
    forwards.push_back(f);
    if constexpr (!in_8_bits) {
      Backward<Stored> back{};
      back.x = f.x, back.x_step = f.x_step, back.x_row = f.x_row, back.weights = weights;
      back.packed = f.saved ? nullptr : packed;
      back.h_0 = f.h_0, back.h_0_row = f.h_0_row, back.output_row = f.output_row;
      if constexpr (in_16_bits) back.output = f.rounded;
      else back.output = f.output;
      back.saved = f.saved, back.norms = f.norms;
      back.d_output = pointer(data.d_output, column), back.d_output_step = data.d_output_step, back.d_output_row = data.d_output_row;
      back.d_h_n = pointer(data.d_h_n[d]), back.d_h_n_row = data.h_row, back.d_saved = pointer(data.d_saved[d]);
      back.reverse = f.reverse, back.extras = extras;
      back.d_x = pointer(of[d_x]), back.d_h_0 = pointer(of[d_h_0]), back.d_fresh = pointer(of[d_fresh]);
      back.d_w_ih = pointer(of[d_w_ih]), back.d_w_hh = pointer(of[d_w_hh]), back.d_b_ih = pointer(of[d_b_ih]);
      back.d_b_hh = pointer(of[d_b_hh]), back.d_g_ih = pointer(of[d_g_ih]), back.d_g_hh = pointer(of[d_g_hh]);
      backwards.push_back(back);
    }
  }
  forward(sizes, forwards.data(), static_cast<int>(c.D()));
  if constexpr (in_16_bits) narrow.into(c, data, r);
  if (!way.trains()) return;
  if constexpr (!in_8_bits) {
    const char* here = isa_name();
    if (way.elsewhere) set_isa(here == isa_names()[0] && isa_names()[1] ? isa_names()[1] : isa_names()[0]);
    backward(sizes, backwards.data(), static_cast<int>(c.D()));
    if (way.elsewhere) set_isa(here);
  }
}
template <class Stored, class Real>
Results<Real> run(const Case& c, const Data<Real>& data, const Way& way) {
  Results<Real> r(c, data, way.asked);
  run<Stored>(c, data, way, r);
  return r;
}

// ------------------------------------------------------------------------------------------------ the twin

double sigma(double x) { return 1 / (1 + std::exp(-x)); }

// Layer norm of v[first ... first + n - 1], in place; returns 1 / sqrt(variance + 1e-5).
double normalise(Doubles& v, int64_t first, int64_t n) {
  double mean = 0, variance = 0;
  for (int64_t i = first; i < first + n; ++i) mean += v[i] / n;
  for (int64_t i = first; i < first + n; ++i) variance += (v[i] - mean) * (v[i] - mean) / n;
  const double factor = 1 / std::sqrt(variance + 1e-5);
  for (int64_t i = first; i < first + n; ++i) v[i] = (v[i] - mean) * factor;
  return factor;
}
// The gradient of y = normalise(v) becomes that of v: each v moves its own y, the mean, and the variance.
void normalise_back(Doubles& d, const Doubles& y, double factor, int64_t first, int64_t n) {
  double of_mean = 0, of_variance = 0;
  for (int64_t i = first; i < first + n; ++i) of_mean += d[i] / n, of_variance += d[i] * y[i] / n;
  for (int64_t i = first; i < first + n; ++i) d[i] = factor * (d[i] - of_mean - y[i] * of_variance);
}

// What one step leaves for the way back. in: m * h_(t-1), and r_in r times that; y: W v, with layer norm normalised; k: zoneout's.
struct Step {
  int64_t t, row;
  bool anew, begins;  // after a reset; or as the first one
  Doubles x, old, in, r_in, y_x, y_h, r, z, n, hn, k;
  double norms[4];
};

// The equations, one value at a time, in double.
template <class Stored, class Real>
Results<double> exact(const Case& c, const Data<Real>& data) {
  constexpr bool rounds_gradients = sizeof(Stored) == 2;
  const int64_t H = c.H, I = c.I;
  const bool after = c.reset == Reset::after;
  Results<double> out(c, data);
  for (int d = c.from; d < c.to; ++d) {
    auto& of = out.of[d];
    for (int kind : {d_fresh, d_w_ih, d_w_hh, d_b_ih, d_b_hh, d_g_ih, d_g_hh}) {
      std::fill(of[kind].begin(), of[kind].end(), 0.0);
    }
    const int64_t column = (d - c.from) * H;
    const auto w_ih = [&](int64_t i, int64_t k) { return double(data.w_ih[d][i * data.w_ih_row + k]); };
    const auto w_hh = [&](int64_t i, int64_t k) { return double(data.w_hh[d][i * data.w_hh_row + k]); };
    // gain y + bias; without layer norm the gain is 1
    const auto scaled = [](const Values<Real>& gain, double y, const Values<Real>& bias, int64_t i) {
      return (gain.empty() ? 1.0 : gain[i]) * y + (bias.empty() ? 0.0 : bias[i]);
    };
    for (int64_t b = 0; b < c.B; ++b) {
      const auto state = [&](const Values<Real>& from) {
        const auto row = data.state(from, b, H);
        return Doubles(row.begin(), row.end());
      };
      Doubles m(H, 1.0);
      if (c.mask) std::copy_n(data.mask[d].begin() + b * H, H, m.begin());
      std::vector<Step> steps(data.lengths[b]);
      Doubles h = state(data.h_0[d]);
      for (size_t i = 0; i < steps.size(); ++i) {
        Step& s = steps[i];
        s.t = d == 0 ? i : steps.size() - 1 - i, s.row = data.number(s.t, b);
        // Backwards we come from the step after: if that one is marked, a piece ends here.
        s.anew = d == 0 ? data.marked(s.t, b) : i > 0 && data.marked(s.t + 1, b);
        s.begins = s.anew || i == 0;
        if (s.anew) h = state(data.fresh[d]);
        const Real* x = pointer(data.x, data.at(s.t, b, data.x_step, data.x_row));
        s.x.assign(x, x + I);
        round_row<Stored>(s.x);
        s.old = s.in = h;
        if (rounds_gradients) round_row<Stored>(s.in);
        for (Doubles* v : {&s.y_x, &s.y_h}) v->resize(3 * H);
        for (Doubles* v : {&s.r, &s.z, &s.n, &s.hn, &s.k}) v->resize(H);
        for (int64_t k = 0; k < H; ++k) s.in[k] *= m[k];
        const Doubles unrounded = s.in;
        round_row<Stored>(s.in);
        for (int64_t g = 0; g < 3 * H; ++g) {
          for (int64_t k = 0; k < I; ++k) s.y_x[g] += w_ih(g, k) * s.x[k];
          for (int64_t k = 0; k < H && (after || g < 2 * H); ++k) s.y_h[g] += w_hh(g, k) * s.in[k];
        }
        if (c.norm) {
          s.norms[0] = normalise(s.y_h, 0, 2 * H);
          s.norms[2] = normalise(s.y_x, 0, 2 * H), s.norms[3] = normalise(s.y_x, 2 * H, H);
        }
        const auto a_x = [&](int64_t g) { return scaled(data.g_ih[d], s.y_x[g], data.b_ih[d], g); };
        const auto a_h = [&](int64_t g) { return scaled(data.g_hh[d], s.y_h[g], data.b_hh[d], g); };
        for (int64_t j = 0; j < H; ++j) s.r[j] = sigma(a_x(j) + a_h(j)), s.z[j] = sigma(a_x(H + j) + a_h(H + j));
        if (!after) {
          s.r_in.resize(H);
          for (int64_t k = 0; k < H; ++k) s.r_in[k] = s.r[k] * (rounds_gradients ? s.in : unrounded)[k];
          round_row<Stored>(s.r_in);
          for (int64_t g = 2 * H; g < 3 * H; ++g) {
            for (int64_t k = 0; k < H; ++k) s.y_h[g] += w_hh(g, k) * s.r_in[k];
          }
        }
        if (c.norm) s.norms[1] = normalise(s.y_h, 2 * H, H);
        for (int64_t j = 0; j < H; ++j) {
          s.hn[j] = a_h(2 * H + j);
          s.n[j] = std::tanh(a_x(2 * H + j) + (after ? s.r[j] : 1) * s.hn[j]);
          s.k[j] = c.zone == Zone::bytes ? data.zone[s.row * data.zone_row + column + j] : data.zone_rate;
          const double keep = s.z[j] + s.k[j] * (1 - s.z[j]);
          h[j] = (1 - keep) * s.n[j] + keep * s.old[j];
          out.output[s.row * data.output_row + column + j] = h[j];
        }
        double* to = of[saved].data() + s.row * slots(c.norm) * H;
        for (const Doubles* v : {&s.r, &s.z, &s.n, &s.hn}) to = std::copy(v->begin(), v->end(), to);
        if (c.norm) {
          std::copy(s.y_x.begin(), s.y_x.end(), std::copy(s.y_h.begin(), s.y_h.end(), to));
          std::copy_n(s.norms, 4, of[norms].begin() + s.row * 4);
        }
      }
      std::copy(h.begin(), h.end(), of[h_n].begin() + b * H);
      Doubles d_h = state(data.d_h_n[d]);
      for (size_t i = steps.size(); i-- > 0;) {
        Step& s = steps[i];
        if (rounds_gradients) round_row<Stored>(s.y_x), round_row<Stored>(s.y_h);  // as they were saved
        const auto own = [&](int slot, int64_t j) {
          return c.d_saved ? data.d_saved[d][(s.row * 4 + slot) * H + j] : 0.0;
        };
        // d_a: of what the biases were added to; d_p: of the products before layer norm. Of x's sums and of h's.
        Doubles d_a_x(3 * H), d_a_h(3 * H), d_p_x(3 * H), d_p_h(3 * H), d_old(H), d_in(H, 0.0);
        const auto products = [&](int64_t first, int64_t n) {
          const auto round = [&](Doubles& v) {
            if (rounds_gradients) round_row<Stored>(v.data() + first, n);
          };
          round(d_a_x), round(d_a_h);
          for (int64_t g = first; g < first + n; ++g) {
            d_p_x[g] = d_a_x[g] * (c.norm ? data.g_ih[d][g] : 1), d_p_h[g] = d_a_h[g] * (c.norm ? data.g_hh[d][g] : 1);
          }
          if (!c.norm) return;
          normalise_back(d_p_x, s.y_x, s.norms[first == 0 ? 2 : 3], first, n);
          normalise_back(d_p_h, s.y_h, s.norms[first == 0 ? 0 : 1], first, n);
          round(d_p_x), round(d_p_h);
        };
        for (int64_t j = 0; j < H; ++j) {
          if (c.d_output) d_h[j] += data.d_output[data.at(s.t, b, data.d_output_step, data.d_output_row) + column + j];
          const double r = s.r[j], z = s.z[j], n = s.n[j], change = 1 - s.k[j];
          const double old = rounds_gradients && !s.begins ? to_8_bits_of_mantissa(s.old[j]) : s.old[j];
          const double d_z = d_h[j] * (old - n) * change + own(1, j);
          const double d_n = (d_h[j] * (1 - z) * change + own(2, j)) * (1 - n * n);
          d_a_x[H + j] = d_a_h[H + j] = d_z * z * (1 - z);
          d_a_x[2 * H + j] = d_n, d_a_h[2 * H + j] = (after ? d_n * r : d_n) + own(3, j);
          d_old[j] = d_h[j] * (z + s.k[j] * (1 - z));
        }
        products(2 * H, H);
        for (int64_t k = 0; k < H; ++k) {
          double d_r = d_a_x[2 * H + k] * s.hn[k];
          if (!after) {
            double d_rh = 0;
            for (int64_t j = 0; j < H; ++j) d_rh += d_p_h[2 * H + j] * w_hh(2 * H + j, k);
            d_r = d_rh * s.in[k], d_in[k] += d_rh * s.r[k];
          }
          d_a_x[k] = d_a_h[k] = (d_r + own(0, k)) * s.r[k] * (1 - s.r[k]);
        }
        products(0, 2 * H);
        std::fill_n(of[d_x].begin() + s.row * I, I, 0.0);
        for (int64_t g = 0; g < 3 * H; ++g) {
          const bool apart = !after && g >= 2 * H;  // W_hn sees r * in, and d_in has its part
          for (int64_t k = 0; k < H; ++k) {
            if (!apart) d_in[k] += d_p_h[g] * w_hh(g, k);
            of[d_w_hh][g * H + k] += d_p_h[g] * (apart ? s.r_in : s.in)[k];
          }
          for (int64_t k = 0; k < I; ++k) {
            of[d_x][s.row * I + k] += d_p_x[g] * w_ih(g, k);
            of[d_w_ih][g * I + k] += d_p_x[g] * s.x[k];
          }
          of[d_b_ih][g] += d_a_x[g], of[d_b_hh][g] += d_a_h[g];
          if (c.norm) of[d_g_ih][g] += d_a_x[g] * s.y_x[g], of[d_g_hh][g] += d_a_h[g] * s.y_h[g];
        }
        for (int64_t k = 0; k < H; ++k) {
          d_h[k] = d_old[k] + m[k] * d_in[k];
          if (s.anew) of[d_fresh][b * H + k] += d_h[k], d_h[k] = 0;
        }
      }
      std::copy(d_h.begin(), d_h.end(), of[d_h_0].begin() + b * H);
    }
  }
  return out;
}

// ------------------------------------------------------------------------------------------------ tests

template <class Stored>
std::string bits_of() {
  return ", " + std::to_string(8 * sizeof(Stored)) + " bits";
}

template <class Real>
bool same_bits(const Values<Real>& a, const Values<Real>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Real)) == 0);
}

// Root mean square, relative to the truth; infinite where one has a value and the other none.
template <class Real>
double error_of(const Values<Real>& ours, const Doubles& truth) {
  if (ours.size() != truth.size()) return INFINITY;
  double wrong = 0, size = 1e-30;
  for (size_t k = 0; k < truth.size(); ++k) {
    if (std::isnan(truth[k]) != std::isnan(ours[k])) return INFINITY;
    if (std::isnan(truth[k])) continue;  // padding, or between rows: nobody wrote there
    const double e = ours[k] - truth[k];
    // The gradients that come in are of size 1: a sum that cancels is held to that, not to the nothing left of it.
    wrong += e * e, size += std::max(1.0, truth[k] * truth[k]);
  }
  return std::sqrt(wrong / size);
}

// The twin's gradients are the slopes of its own values: what stands there twice in the same words, here and in the
// kernels, could be wrong twice.
void test_twin(Case c) {
  c.gaps = false;  // gradients have none, and so lie like what they are of
  const int64_t H = c.H;
  Data<double> data(c);
  const auto gradients = exact<double>(c, data);
  const auto loss = [&] {
    const auto now = exact<double>(c, data);
    double sum = 0;
    for (int d = c.from; d < c.to; ++d) {
      for (int64_t b = 0; b < c.B; ++b) {
        for (int64_t j = 0; j < H && c.d_h_n; ++j) sum += now.of[d][h_n][b * H + j] * data.d_h_n[d][b * H + j];
        for (int64_t t = 0; t < data.lengths[b]; ++t) {
          const int64_t row = data.number(t, b), in_output = row * c.D() * H + (d - c.from) * H;
          for (int64_t j = 0; j < H && c.d_output; ++j) sum += now.output[in_output + j] * data.d_output[in_output + j];
          for (int64_t k = 0; k < 4 * H && c.d_saved; ++k) {
            sum += now.of[d][saved][row * slots(c.norm) * H + k] * data.d_saved[d][row * 4 * H + k];
          }
        }
      }
    }
    return sum;
  };
  const auto compare = [&](Doubles& values, const Doubles& of_these, const Doubles* and_these, const char* what) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      const double value = values[i], step = 1e-5, slope = of_these[i] + (and_these ? (*and_these)[i] : 0);
      values[i] = value + step;
      const double above = loss();
      values[i] = value - step;
      const double measured = (above - loss()) / (2 * step);
      values[i] = value;
      // What a difference leaves out is the third derivative's, and layer norm's is steep where the variance is small.
      const double error = std::fabs(measured - slope) / std::max(1.0, std::fabs(slope));
      check(error < (c.norm ? 1e-5 : 1e-7), std::string("the twin's ") + what + " of " + c.name());
    }
  };
  compare(data.x, gradients.of[c.from][d_x], c.D() == 2 ? &gradients.of[1][d_x] : nullptr, "d_x");
  for (int d = c.from; d < c.to; ++d) {
    const auto& of = gradients.of[d];
    const std::pair<Values<double>*, Kind> all[] = {
        {&data.w_ih[d], d_w_ih}, {&data.w_hh[d], d_w_hh}, {&data.b_ih[d], d_b_ih}, {&data.b_hh[d], d_b_hh},
        {&data.g_ih[d], d_g_ih}, {&data.g_hh[d], d_g_hh}, {&data.h_0[d], d_h_0},   {&data.fresh[d], d_fresh}};
    for (const auto& one : all) compare(*one.first, of[one.second], nullptr, kind_names[one.second]);
  }
}

// The same, but every value moved by one rounding, up or down.
template <class Real>
Data<Real> moved(Data<Real> data) {
  const auto move = [](Values<Real>& values) {
    for (auto& v : values) v = std::nextafter(v, std::numeric_limits<Real>::infinity() * (coin() ? 1 : -1));
  };
  move(data.x), move(data.d_output);
  for (auto* both : {data.w_ih, data.w_hh, data.b_ih, data.b_hh, data.g_ih, data.g_hh, data.h_0, data.fresh, data.d_h_n,
                     data.d_saved}) {
    move(both[0]), move(both[1]);
  }
  return data;
}

// Whether these kernels are those of another name.
template <class Stored>
bool seen_before(const std::string& isa) {
  return sizeof(Stored) >= 4 && (isa == "avx512_amx" || isa == "avx512_bf16" || isa == "neon_bf16");
}

template <class Stored>
void test_case(const Case& c) {
  using Real = Sum<Stored>;
  constexpr bool in_16_bits = sizeof(Stored) == 2, in_8_bits = sizeof(Stored) == 1, narrow = in_16_bits || in_8_bits;
  Data<Real> data(c);
  if (narrow) data.template round<Stored>(c);
  const auto truth = exact<Stored>(c, data);
  Values<double> bounds;
  // The twin rounds to 8 or 16 bits where the kernels do, but a value right between two numbers may go to the other one.
  double bound = narrow ? 4e-3 : sizeof(Real) == 4 ? 3e-6 : 3e-15;
  if (narrow && c.norm) bound *= 2;  // two roundings on the way back
  if (c.d_saved) bound *= 2;  // five gradients of size 1 come in for every unit, not one
  // Layer norm multiplies a rounding by 1 / sqrt(variance + 1e-5): by up to 316 where values lie close together, as one
  // or two do, and as multiples of a single small x do. That goes on from step to step: nobody is nearer than what a few
  // dozen roundings of all that was given make of the result. (Measured with 16 seeds: 0.4 of this bound at most, and
  // 0.6 of the one without layer norm.)
  if (c.norm && (c.H <= 2 || c.I == 1)) bound *= 316;
  if (narrow) {
    const auto unrounded = exact<double>(c, data);
    unrounded.with(truth, [&](const char*, const Doubles& nearly, const Doubles& exactly) {
      bounds.push_back(std::max(bound, error_of(nearly, exactly)));
    });
  } else {
    const auto near = c.norm ? exact<Stored>(c, moved(data)) : truth;
    near.with(truth, [&](const char*, const Doubles& nearly, const Doubles& exactly) {
      bounds.push_back(std::max(bound, 64 * error_of(nearly, exactly)));
    });
  }
  const unsigned all = in_8_bits ? 1u << h_n : ~0u;
  const Way first{static_cast<int>(1 + draw(4)), all};
  std::vector<Way> ways;
  for (int threads : {1, 2, 3, 5}) {  // the same bits on any number of threads, whatever is saved, whatever is asked
    Way way{threads, all};
    if (coin()) way.asked &= draw(3) ? generator() : 1u << d_x | 1u << d_h_0;  // the latter: trained weights, frozen
    if (coin() && !in_8_bits) way.asked |= 1u << saved | 1u << norms;
    else way.asked &= ~(1u << saved | 1u << norms);
    way.turn = draw(2);
    way.elsewhere = way.again() && coin();  // packed weights know their own
    ways.push_back(way);
  }
  for (const char* const* isa = isa_names(); *isa; ++isa) {
    if (seen_before<Stored>(*isa)) continue;
    set_isa(*isa);
    const auto ours = run<Stored>(c, data, first);
    size_t i = 0;
    ours.with(truth, [&](const char* kind, const Values<Real>& mine, const Doubles& theirs) {
      const double bound = bounds[i++];
      if (in_8_bits && mine.empty()) return;  // there is no training in 8 bits
      const double error = error_of(mine, theirs) / bound;
      check(error < 1, std::string(kind) + " of " + c.name() + bits_of<Stored>() + ": " + std::to_string(error) + " of the bound");
    });
    for (const Way& way : ways) {
      auto again = run<Stored>(c, data, way);
      if (in_16_bits && !way.trains()) {
        for (auto& value : again.output) value = std::isnan(value) ? value : widened(narrowed(value));
      }
      ours.with(again, [&](const char* kind, const Values<Real>& mine, const Values<Real>& other) {
        check(other.empty() || same_bits(mine, other), std::string(kind) + " on " + way.name() + ", " + c.name() + bits_of<Stored>());
      });
    }
  }
}

// A sequence alone, cut into pieces that are calls of their own, gives the bits that it has within the batch. Cut where
// it is marked, and with nothing marked any more, the pieces are the episodes that the marks make of it.
template <class Stored>
void test_rows(Case c, bool episodes) {
  using Real = Sum<Stored>;
  constexpr bool narrow = sizeof(Stored) < 4;
  const int64_t H = c.H;
  c.resets = c.resets || episodes;
  const Data<Real> data(c);
  const unsigned inference = 1u << h_n, training = sizeof(Stored) == 1 ? inference : of_forward;
  for (const char* const* isa = isa_names(); *isa; ++isa) {
    if (seen_before<Stored>(*isa)) continue;
    set_isa(*isa);
    const auto together = run<Stored>(c, data, {2, narrow ? inference : ~0u});
    for (int d = c.from; d < c.to; ++d) {
      for (int64_t b = 0; b < c.B; ++b) {
        const int64_t length = data.lengths[b];
        std::vector<int64_t> cuts{0};
        for (int64_t t = 1; t < length; ++t) {
          if (episodes ? data.marked(t, b) : t == length / 3 || t == length - 1) cuts.push_back(t);
        }
        cuts.push_back(length);
        auto state = data.state(data.h_0[d], b, H);
        const int64_t pieces = static_cast<int64_t>(cuts.size()) - 1;
        for (int64_t i = 0; i < pieces; ++i) {
          const int64_t piece = d == 0 ? i : pieces - 1 - i, first = cuts[piece], end = cuts[piece + 1];
          if (first == end) continue;  // of an empty sequence, whose marks are nobody's
          Case one = c;
          one.T = end - first, one.B = 1, one.from = d, one.to = d + 1, one.layout = Layout::alike, one.gaps = false;
          one.resets = c.resets && !episodes;
          // The mark between two pieces: forwards it is the later one's. Backwards neither sees it, and we heed it.
          const bool anew = d == 0 ? episodes && data.marked(first, b) : end < length && data.marked(end, b);
          if (anew) state = data.state(data.fresh[d], b, H);
          const Data<Real> part(one, data, b, first, d, c.from, state);
          const auto alone = run<Stored>(one, part, {2, b % 2 ? inference : training, draw(2)});
          for (int64_t t = first; t < end; ++t) {
            const Real* whole = together.output.data() + data.number(t, b) * data.output_row + (d - c.from) * H;
            check(std::memcmp(whole, alone.output.data() + (t - first) * H, sizeof(Real) * H) == 0,
                  std::string(episodes ? "an episode, " : "a row alone, ") + c.name() + bits_of<Stored>());
          }
          state = alone.of[d][h_n];
        }
        const Real* last = together.of[d][h_n].data() + b * H;
        check(std::memcmp(last, state.data(), sizeof(Real) * H) == 0, "h_n of a row, " + c.name() + bits_of<Stored>());
      }
    }
  }
}

// Whichever allocation finds no memory: what a call was to write it has not begun to.
template <class Real>
void test_short_memory(const Case& c) {
  const Data<Real> data(c);
  const Way way{2, ~(1u << saved | 1u << norms)};
  for (int n = 0;; ++n) {
    Results<Real> r(c, data, way.asked);
    bool thrown = false;
    allocations_left = n;
    try {
      run<Real>(c, data, way, r);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    allocations_left = -1;
    const auto written = [](const Values<Real>& v) {
      return std::count_if(v.begin(), v.end(), [](Real value) { return !std::isnan(value); });
    };
    const int64_t all = static_cast<int64_t>(r.output.size()), some = written(r.output);
    check(some == 0 || some == all, "output where memory is short, " + c.name());
    for (const auto& of : r.of) {
      for (int kind = d_x; kind < kinds && thrown; ++kind) {
        check(written(of[kind]) == 0, std::string(kind_names[kind]) + " where memory is short, " + c.name());
      }
    }
    if (!thrown) return check(n > 2 && some == all, "memory ran short nowhere, " + c.name());
  }
}

template <class Real>
void test_activations() {
  Values<Real> x = normal<Real>(20000, 3);
  for (double v : {0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 60.0, -60.0, 1e30, -1e30}) x.push_back(static_cast<Real>(v));
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<Real>(i / 1000.0)), x.push_back(static_cast<Real>(i / 1e6));
  const int64_t n = static_cast<int64_t>(x.size());
  auto s = unset<Real>(n), t = s;
  activations(x.data(), s.data(), t.data(), n);
  double worst_s = 0, worst_t = 0;
  const auto ulps = [](long double exact, Real value) {
    int exponent;
    std::frexp(static_cast<double>(exact), &exponent);
    const int digits = std::numeric_limits<Real>::digits;
    const long double ulp = std::ldexp(1.0L, std::max(exponent - digits, std::numeric_limits<Real>::min_exponent));
    return std::isnan(value) ? INFINITY : static_cast<double>(std::fabs(value - exact) / ulp);
  };
  for (int64_t i = 0; i < n; ++i) {
    const long double v = x[i];
    worst_s = std::max(worst_s, ulps(1 / (1 + std::exp(-v)), s[i]));
    worst_t = std::max(worst_t, ulps(std::tanh(v), t[i]));
  }
  check(worst_s <= 3 && worst_t <= 3, "activations: " + std::to_string(worst_s) + ", " + std::to_string(worst_t));
  std::printf("  %s, %d bits: sigmoid within %.2f ulp, tanh within %.2f\n", isa_name(), int(8 * sizeof(Real)), worst_s, worst_t);
  const Real nan[] = {std::numeric_limits<Real>::quiet_NaN()}, inf[] = {std::numeric_limits<Real>::infinity()};
  activations(nan, s.data(), t.data(), 1);
  check(std::isnan(s[0]) && std::isnan(t[0]), "NaN stays NaN");
  activations(inf, s.data(), t.data(), 1);
  check(s[0] == 1 && t[0] == 1, "at infinity both are 1");
}

// y = W x + b: right, and each row the same alone, in any batch and on any number of threads.
template <class Real>
void test_affine(int64_t rows, int64_t I, int64_t O, bool bias) {
  const std::string name = "affine " + std::to_string(rows) + " " + std::to_string(I) + " " + std::to_string(O);
  const int64_t x_row = I + 3;
  const auto x = normal<Real>(rows * x_row, 1), w = normal<Real>(O * I, 2), b = normal<Real>(O, 3);
  const Real* b_or_null = bias ? b.data() : nullptr;
  auto y = unset<Real>(rows * O);
  affine<Real>({x.data(), x_row, w.data(), b_or_null, y.data(), rows, I, O}, 1);
  double worst = 0;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t o = 0; o < O; ++o) {
      long double sum = bias ? b[o] : 0, size = std::fabs(sum);
      for (int64_t i = 0; i < I; ++i) {
        const long double product = static_cast<long double>(x[row * x_row + i]) * w[o * I + i];
        sum += product, size += std::fabs(product);
      }
      const double error = static_cast<double>(std::fabs(y[row * O + o] - sum) / (size > 0 ? size : 1));
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
  }
  check(worst < 16 * std::numeric_limits<Real>::epsilon(), name + ": error " + std::to_string(worst));
  auto other = unset<Real>(rows * O);
  affine<Real>({x.data(), x_row, w.data(), b_or_null, other.data(), rows, I, O}, 3);
  check(same_bits(y, other), name + ": threads change bits");
  for (int64_t row = 0; row < rows; ++row) {
    affine<Real>({x.data() + row * x_row, x_row, w.data(), b_or_null, other.data() + row * O, 1, I, O}, 1);
  }
  check(same_bits(y, other), name + ": a row alone has other bits");
}

// The same in blocks, and backwards: right, on any number of threads, and outputs the same in any batch.
template <class Real>
void test_product(int64_t rows, int64_t I, int64_t O) {
  const std::string name = "product " + std::to_string(rows) + " " + std::to_string(I) + " " + std::to_string(O);
  const auto x = normal<Real>(rows * I, 1), w = normal<Real>(O * I, 2), b = normal<Real>(O, 3), d_y = normal<Real>(rows * O, 4);
  struct Results {
    std::vector<Real> y, d_x, d_w, d_b;
  };
  const auto run = [&](int threads) {
    Results r{unset<Real>(rows * O), unset<Real>(rows * I), unset<Real>(O * I), unset<Real>(O)};
    affine_in_blocks<Real>({x.data(), I, w.data(), b.data(), r.y.data(), rows, I, O}, threads);
    affine_backward<Real>({x.data(), w.data(), d_y.data(), r.d_x.data(), r.d_w.data(), r.d_b.data(), rows, I, O}, threads);
    return r;
  };
  const Results one = run(1), three = run(3);
  // c[m, n] = Σ_k of term(m, n, k)
  const auto near = [&](const std::vector<Real>& c, int64_t M, int64_t N, int64_t K, const auto& term, const char* what) {
    double worst = 0;
    for (int64_t m = 0; m < M; ++m) {
      for (int64_t n = 0; n < N; ++n) {
        long double sum = 0, size = 0;
        for (int64_t k = 0; k < K; ++k) sum += term(m, n, k), size += std::fabs(term(m, n, k));
        const double error = static_cast<double>(std::fabs(c[m * N + n] - sum) / (size > 0 ? size : 1));
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
      }
    }
    check(worst < 16 * std::numeric_limits<Real>::epsilon(), name + ": " + what + " error " + std::to_string(worst));
  };
  using Long = long double;
  near(one.y, rows, O, I + 1, [&](int64_t m, int64_t n, int64_t k) { return k < I ? static_cast<Long>(x[m * I + k]) * w[n * I + k] : b[n]; }, "y");
  near(one.d_x, rows, I, O, [&](int64_t m, int64_t n, int64_t k) { return static_cast<Long>(d_y[m * O + k]) * w[k * I + n]; }, "d_x");
  near(one.d_w, O, I, rows, [&](int64_t m, int64_t n, int64_t k) { return static_cast<Long>(d_y[k * O + m]) * x[k * I + n]; }, "d_w");
  near(one.d_b, O, 1, rows, [&](int64_t m, int64_t, int64_t k) { return static_cast<Long>(d_y[k * O + m]); }, "d_b");
  check(same_bits(one.y, three.y) && same_bits(one.d_x, three.d_x) && same_bits(one.d_w, three.d_w) && same_bits(one.d_b, three.d_b),
        name + ": threads change bits");
  for (int64_t row = 0; row < rows; row += 7) {
    auto y = unset<Real>(O);
    affine_in_blocks<Real>({x.data() + row * I, I, w.data(), b.data(), y.data(), 1, I, O}, 1);
    check(same_bits(y, std::vector<Real>(one.y.begin() + row * O, one.y.begin() + (row + 1) * O)), name + ": a row alone has other bits");
  }
}

template <class Stored>
void test_all(int draws) {
  for (int64_t H : {1, 2, 7, 9, 33, 64}) {
    for (int64_t B : {1, 2, 5, 13}) {
      const int64_t T = H == 9 ? 63 : 6, I = H == 33 ? 1 : H == 7 ? 40 : 5;
      for (int i = 0; i < draws; ++i) test_case<Stored>(drawn(T, B, I, H));
    }
  }
  for (int i = 0; i < draws; ++i) {
    for (int64_t T : {0, 1}) test_case<Stored>(drawn(T, 3, 4, 5));
    test_case<Stored>(drawn(4, 0, 4, 5));
    test_case<Stored>(drawn(3, 2, 0, 5));
    test_case<Stored>(drawn(2, 300, 3, 20));  // a chunk of backwards is one step
    test_case<Stored>(drawn(3, 2, 11, 240));
    test_case<Stored>(drawn(9, 5, 7, 100));
    test_case<Stored>(drawn(40, 13, 8, 34));
    for (bool episodes : {false, true}) {
      test_rows<Stored>(drawn(7, 11, 6, 20), episodes);
      test_rows<Stored>(drawn(5, 3, 6, 250), episodes);
    }
  }
  for (int i = 0; i < 3 * draws; ++i) {  // steps so long that threads split them by units; with layer norm they never do
    Case c = i < 2 ? drawn(52, 5, 4, 92) : drawn(4, 3, 7, 160);  // a chunk of backwards is 51 steps of 5 rows
    c.norm = false;
    test_case<Stored>(c);
  }
}

// How threads share their work (team.h), here without the pool: who takes part, and when, is up to the test.

// A thread alone does the pieces of all; one that comes later finds nothing to do.
void test_absent_thread() {
  Shared shared(2, 2);
  Worker here(shared, 0), late(shared, 1);
  std::vector<int> order;
  for (int phase = 0; phase < 3; ++phase) {
    check(here.phase(5 - phase, [&](int piece) { order.push_back(10 * phase + piece); }), "an absent thread: phase");
  }
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  check(sorted == std::vector<int>{0, 1, 2, 3, 4, 10, 11, 12, 13, 20, 21, 22}, "an absent thread: each piece once");
  check(order[0] == 0 && order[2] >= 2 && order[5] >= 10 && order[9] >= 20, "an absent thread: its own pieces first, phase by phase");
  for (int phase = 0; phase < 3; ++phase) {
    check(late.phase(5 - phase, [&](int) { order.push_back(99); }), "a late thread: phase");
  }
  check(order.size() == sorted.size(), "a late thread does nothing again");
}

// A thread that stops within a piece, as one that loses its core does, keeps the others from that piece alone.
void test_stopped_thread() {
  for (int threads : {2, 3}) {
    Shared shared(threads, threads);
    std::atomic<int> done{0}, begun{0};
    std::atomic<bool> go_on{false};
    int done_there = 0;
    std::vector<std::atomic<int>> times(12);
    for (auto& t : times) t = 0;
    std::thread stopped([&] {
      Worker worker(shared, 1);
      worker.phase(12, [&](int piece) {
        ++times[piece];
        if (begun++ == 0) {
          while (!go_on) std::this_thread::yield();
        }
        ++done;
      });
      done_there = done;
    });
    while (begun == 0) std::this_thread::yield();
    Worker worker(shared, 0);
    worker.phase(12, [&](int piece) {
      ++times[piece];
      if (++done == 11) go_on = true;  // never, where a piece can't be taken from its owner
    });
    check(done == 12, "a stopped thread: the phase ends when all pieces are done");
    stopped.join();
    check(done_there == 12, "a stopped thread: all pieces are done when it goes on");
    for (auto& t : times) check(t == 1, "a stopped thread: each piece once");
  }
}

// ... and the others go on with the steps of all lanes but the one that it holds, and with that one too when it lets go.
void test_stopped_lane() {
  Shared shared(2, 2, 4);
  std::atomic<bool> go_on{false}, holds{false};
  std::atomic<int> left{3};
  std::vector<std::vector<int64_t>> steps(4);
  constexpr int64_t end = 7;
  const auto work = [&](int lane, int64_t from) {
    if (!holds.exchange(true)) {
      while (!go_on) std::this_thread::yield();
    }
    steps[lane].push_back(from);
    const int64_t to = from + 2 < end ? from + 2 : end;
    if (to == end && --left == 0) go_on = true;
    return to;
  };
  std::thread stopped([&] { Worker(shared, 1).lanes(4, end, work); });
  while (!holds) std::this_thread::yield();
  check(Worker(shared, 0).lanes(4, end, work), "a stopped lane: the others");
  stopped.join();
  for (const auto& lane : steps) check(lane == std::vector<int64_t>{0, 2, 4, 6}, "a stopped lane: each step once, in order");
}

#if defined(__SSE__)
// Whoever takes a piece, in whatever mode its caller is: numbers below the smallest normal one are 0, all else is the caller's mode,
// and afterwards each has its own again. (Both threads must take part: each waits within its piece for the other one's.)
void test_mode() {
  struct Halves {
    std::atomic<int> begun{0};
    volatile float smallest = 1.17549435e-38f;
    std::atomic<unsigned> modes[2] = {{0}, {0}};
    std::atomic<bool> kept[2] = {{false}, {false}};

    static void work(void* self, int piece, int) {
      Halves& h = *static_cast<Halves*>(self);
      ++h.begun;
      while (h.begun < 2) std::this_thread::yield();
      h.kept[piece] = h.smallest * 0.5f != 0;
      h.modes[piece] = _mm_getcsr() & ~0x3fu;
    }
  };
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {before & ~0x8040u, before | 0x8040u, before | 0x2000u}) {  // keeps, flushes, rounds down
    _mm_setcsr(mode);
    Halves h;
    run_pieces(2, 2, Halves::work, &h);
    for (const auto& kept : h.kept) check(!kept, "numbers below the smallest normal one are 0");
    for (const auto& one : h.modes) check(one == ((mode | 0x8040u) & ~0x3fu), "a thread's mode is that of its caller, flushing");
    check((_mm_getcsr() & ~0x3fu) == (mode & ~0x3fu), "a caller has its mode again");
  }
  _mm_setcsr(before);
}
#endif

// Many short phases with threads that come and go: nothing is lost, done twice or done too early.
void test_many_phases() {
  struct Sums {
    Shared shared{3, 3};
    std::vector<int64_t> before = std::vector<int64_t>(7, 1), after = std::vector<int64_t>(7, 0);
    bool right = true;

    static void work(void* self, int place, int) {
      Sums& s = *static_cast<Sums*>(self);
      Worker worker(s.shared, place);
      for (int i = 0; i < 2000; ++i) {
        auto &from = i % 2 ? s.after : s.before, &to = i % 2 ? s.before : s.after;
        const bool stays = worker.phase(1 + i % 7, [&](int piece) {
          for (int k = piece; k < 7; k += 1 + i % 7) to[k] = from[k] + from[(k + 1) % 7] % 3;
        });
        if (!stays) return;
      }
    }
  };
  const auto sums = [](int threads) {
    Sums s;
    run_team(threads, Sums::work, &s);
    return s.before;
  };
  const auto alone = sums(1);
  for (int i = 0; i < 20; ++i) check(sums(3) == alone, "many phases");
}

}  // namespace

// test_gru [N]: options are drawn N times for each shape; 4 if not given. An emulator does with fewer.
int main(int count, char** arguments) {
  const int draws = count > 1 ? std::atoi(arguments[1]) : 4;
  for (int i = 0; i < 12; ++i) test_twin(drawn(4, 3, 2, 3));
  for (const char* const* isa = isa_names(); *isa; ++isa) {
    set_isa(*isa);
    test_activations<float>();
    test_activations<double>();
    for (int64_t I : {0, 1, 7, 33, 128}) {
      for (int64_t O : {1, 2, 3, 4, 7, 73}) test_affine<float>(5, I, O, true), test_affine<double>(6, I, O, I != 7);
    }
    test_affine<float>(700, 64, 40, true), test_affine<float>(0, 4, 4, true), test_affine<double>(1, 300, 9, true);
    for (int64_t rows : {0, 1, 9, 300}) {
      for (int64_t O : {1, 3, 20, 70}) test_product<float>(rows, 17, O), test_product<double>(rows, O == 3 ? 0 : 33, O);
    }
    test_product<float>(3, 1030, 5), test_product<float>(1030, 3, 5), test_product<float>(9, 4, 1030), test_product<float>(600, 64, 40);
  }
  for (int64_t T : {0, 3}) {
    Case c{T, 2, 3, 5};
    c.to = 2, c.norm = c.resets = true, c.h_0 = false;
    test_short_memory<float>(c);
  }
  test_all<float>(draws);
  test_all<double>(draws);
  test_absent_thread(), test_stopped_thread(), test_stopped_lane(), test_many_phases();
#if defined(__SSE__)
  test_mode();
#endif
  test_all<bf16>(draws);
  test_all<int8_t>(draws);
  // Many threads at once: one has the workers, the others go alone, and all get the same bits.
  Case c{20, 24, 16, 80};
  c.to = 2, c.resets = c.mask = true, c.zone = Zone::bytes, c.layout = Layout::padded;
  const Data<float> data(c);
  for (const char* const* isa = isa_names(); *isa; ++isa) {
    set_isa(*isa);
    const auto alone = run<float>(c, data, {2});
    std::vector<std::thread> others;
    std::vector<int> same(4, 0);
    for (size_t i = 0; i < same.size(); ++i) {
      others.emplace_back([&, i] { same[i] = same_bits(run<float>(c, data, {2}).of[1][d_w_hh], alone.of[1][d_w_hh]); });
    }
    for (auto& other : others) other.join();
    for (int good : same) check(good, "calls from many threads");
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
