// The kernels against the equations written out in double, at odd sizes, on every instruction set of this machine.
// A program of its own, so that it runs under the sanitizers and an emulator: `make test-native`, `make sanitize`.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "../gru.h"

using namespace tidegate;

namespace {

int checks = 0, failures = 0;

void check(bool good, const std::string& what) {
  ++checks;
  if (!good && ++failures <= 20) std::printf("FAILED %s\n", what.c_str());
}

template <class Real>
using Values = std::vector<Real>;

std::mt19937 generator(1);

template <class Real>
Values<Real> normal(int64_t n, double scale = 1) {
  std::normal_distribution<double> draw(0, scale);
  Values<Real> v(static_cast<size_t>(n));
  for (auto& value : v) value = static_cast<Real>(draw(generator));
  return v;
}

// NaN in everything that must be overwritten: a value that was forgotten shows.
template <class Real>
Values<Real> unset(int64_t n) {
  return Values<Real>(static_cast<size_t>(n), std::numeric_limits<Real>::quiet_NaN());
}

struct Case {
  int64_t T, B, I, H;
  Reset reset;
  bool bias, packed;
  int directions, threads;
  std::string name() const {
    return "T" + std::to_string(T) + " B" + std::to_string(B) + " I" + std::to_string(I) + " H" + std::to_string(H) +
           (reset == Reset::after ? " after" : " before") + (bias ? " bias" : "") + (packed ? " packed" : "") +
           " directions " + std::to_string(directions) + " threads " + std::to_string(threads) + " " + isa_name();
  }
};

template <class Real>
struct Data {
  int64_t rows;
  Values<int64_t> batch_sizes, offsets;
  Values<Real> x, w_ih[2], w_hh[2], b_ih[2], b_hh[2], h_0[2], d_output, d_h_n[2];

  explicit Data(const Case& c) : rows(0) {
    for (int64_t t = 0; t < c.T; ++t) {
      const int64_t n = c.packed ? c.B - t * (c.B - 1) / (c.T > 1 ? c.T - 1 : 1) : c.B;
      offsets.push_back(rows), batch_sizes.push_back(n);
      rows += n;
    }
    x = normal<Real>(rows * c.I);
    d_output = normal<Real>(rows * c.directions * c.H);
    for (int d = 0; d < c.directions; ++d) {
      w_ih[d] = normal<Real>(3 * c.H * c.I, 0.5), w_hh[d] = normal<Real>(3 * c.H * c.H, 1 / std::sqrt(c.H + 1.0));
      b_ih[d] = normal<Real>(3 * c.H), b_hh[d] = normal<Real>(3 * c.H);
      h_0[d] = normal<Real>(c.B * c.H), d_h_n[d] = normal<Real>(c.B * c.H);
    }
  }
};

template <class Real>
struct Results {
  Values<Real> output, h_n[2], saved[2], d_x[2], d_h_0[2], d_w_ih[2], d_w_hh[2], d_b_ih[2], d_b_hh[2];

  std::vector<std::pair<std::string, const Values<Real>*>> all(int directions) const {
    std::vector<std::pair<std::string, const Values<Real>*>> list{{"output", &output}};
    for (int d = 0; d < directions; ++d) {
      list.insert(list.end(), {{"h_n", &h_n[d]},
                               {"d_x", &d_x[d]},
                               {"d_h_0", &d_h_0[d]},
                               {"d_w_ih", &d_w_ih[d]},
                               {"d_w_hh", &d_w_hh[d]},
                               {"d_b_ih", &d_b_ih[d]},
                               {"d_b_hh", &d_b_hh[d]}});
    }
    return list;
  }
};

template <class Real>
Results<Real> run(const Case& c, const Data<Real>& data) {
  const Sizes sizes{c.T, c.B, c.I, c.H, c.packed ? data.batch_sizes.data() : nullptr, c.reset, c.threads};
  const int64_t H = c.H, D = c.directions, gates = c.reset == Reset::after ? 4 : 3;
  Results<Real> r;
  r.output = unset<Real>(data.rows * D * H);
  std::vector<Forward<Real>> forwards;
  std::vector<Backward<Real>> backwards;
  std::vector<std::unique_ptr<Packed<Real>>> packed;
  for (int d = 0; d < c.directions; ++d) {
    r.h_n[d] = unset<Real>(c.B * H), r.saved[d] = unset<Real>(data.rows * gates * H);
    r.d_x[d] = unset<Real>(data.rows * c.I), r.d_h_0[d] = unset<Real>(c.B * H);
    r.d_w_ih[d] = unset<Real>(3 * H * c.I), r.d_w_hh[d] = unset<Real>(3 * H * H);
    r.d_b_ih[d] = unset<Real>(c.bias ? 3 * H : 0), r.d_b_hh[d] = unset<Real>(c.bias ? 3 * H : 0);
    const Weights<Real> weights{data.w_ih[d].data(), data.w_hh[d].data(), c.bias ? data.b_ih[d].data() : nullptr,
                                c.bias ? data.b_hh[d].data() : nullptr, c.I, H};
    packed.push_back(std::make_unique<Packed<Real>>(weights, c.I, H, c.reset, c.threads));
    forwards.push_back({data.x.data(), c.B * c.I, c.I, packed.back().get(), data.h_0[d].data(), H,
                        r.output.data() + d * H, D * H, r.h_n[d].data(), r.saved[d].data(), d == 1});
    backwards.push_back({data.x.data(), c.B * c.I, c.I, weights, data.h_0[d].data(), H, r.output.data() + d * H, D * H,
                         r.saved[d].data(), data.d_output.data() + d * H, c.B * D * H, D * H, data.d_h_n[d].data(), H,
                         d == 1, r.d_x[d].data(), r.d_h_0[d].data(), r.d_w_ih[d].data(), r.d_w_hh[d].data(),
                         c.bias ? r.d_b_ih[d].data() : nullptr, c.bias ? r.d_b_hh[d].data() : nullptr});
  }
  forward(sizes, forwards.data(), c.directions);
  backward(sizes, backwards.data(), c.directions);
  return r;
}

double sigma(double x) { return 1 / (1 + std::exp(-x)); }

// The equations, one value at a time, in double.
template <class Real>
Results<double> exact(const Case& c, const Data<Real>& data) {
  const int64_t T = c.T, I = c.I, H = c.H, D = c.directions;
  const bool after = c.reset == Reset::after;
  Results<double> out;
  out.output.resize(static_cast<size_t>(data.rows * D * H));
  for (int d = 0; d < c.directions; ++d) {
    out.h_n[d].resize(c.B * H), out.d_h_0[d].resize(c.B * H), out.d_x[d].assign(data.rows * I, 0);
    out.d_w_ih[d].assign(3 * H * I, 0), out.d_w_hh[d].assign(3 * H * H, 0);
    out.d_b_ih[d].assign(c.bias ? 3 * H : 0, 0), out.d_b_hh[d].assign(c.bias ? 3 * H : 0, 0);
    const auto& w_ih = data.w_ih[d];
    const auto& w_hh = data.w_hh[d];
    const auto bias = [&](const Values<Real>& b, int64_t i) { return c.bias ? double(b[i]) : 0.0; };
    for (int64_t b = 0; b < c.B; ++b) {
      std::vector<int64_t> rows;
      for (int64_t t = 0; t < T; ++t) {
        if (b < data.batch_sizes[t]) rows.push_back(data.offsets[t] + b);
      }
      if (d == 1) rows = std::vector<int64_t>(rows.rbegin(), rows.rend());
      std::vector<std::vector<double>> states, rs, zs, ns, hns;
      std::vector<double> h(data.h_0[d].begin() + b * H, data.h_0[d].begin() + (b + 1) * H);
      for (int64_t row : rows) {
        states.push_back(h);
        std::vector<double> r(H), z(H), n(H), hn(H), xn(H);
        for (int64_t j = 0; j < H; ++j) {
          double a[3];
          for (int g = 0; g < 3; ++g) {
            const int64_t i = g * H + j;
            double of_x = bias(data.b_ih[d], i), of_h = bias(data.b_hh[d], i);
            for (int64_t k = 0; k < I; ++k) of_x += double(w_ih[i * I + k]) * data.x[row * I + k];
            for (int64_t k = 0; k < H; ++k) of_h += double(w_hh[i * H + k]) * h[k];
            a[g] = of_x + of_h;
            if (g == 2) xn[j] = of_x, hn[j] = of_h;
          }
          r[j] = sigma(a[0]), z[j] = sigma(a[1]);
        }
        for (int64_t j = 0; j < H; ++j) {
          if (after) {
            n[j] = std::tanh(xn[j] + r[j] * hn[j]);
          } else {
            double sum = bias(data.b_hh[d], 2 * H + j);
            for (int64_t k = 0; k < H; ++k) sum += double(w_hh[(2 * H + j) * H + k]) * r[k] * h[k];
            n[j] = std::tanh(xn[j] + sum);
          }
        }
        for (int64_t j = 0; j < H; ++j) {
          h[j] = (1 - z[j]) * n[j] + z[j] * h[j];
          out.output[row * D * H + d * H + j] = h[j];
        }
        rs.push_back(r), zs.push_back(z), ns.push_back(n), hns.push_back(hn);
      }
      for (int64_t j = 0; j < H; ++j) out.h_n[d][b * H + j] = h[j];
      std::vector<double> d_h(H);
      for (int64_t j = 0; j < H; ++j) d_h[j] = data.d_h_n[d][b * H + j];
      for (size_t i = rows.size(); i-- > 0;) {
        const int64_t row = rows[i];
        const auto &r = rs[i], &z = zs[i], &n = ns[i], &old = states[i];
        std::vector<double> d_x_a(3 * H), d_h_a(3 * H), before(H);
        for (int64_t j = 0; j < H; ++j) {
          d_h[j] += data.d_output[row * D * H + d * H + j];
          const double d_n = d_h[j] * (1 - z[j]) * (1 - n[j] * n[j]);
          d_x_a[H + j] = d_h_a[H + j] = d_h[j] * (old[j] - n[j]) * z[j] * (1 - z[j]);
          d_x_a[2 * H + j] = d_n, d_h_a[2 * H + j] = after ? d_n * r[j] : d_n;
          before[j] = d_h[j] * z[j];
        }
        for (int64_t k = 0; k < H; ++k) {
          double d_r;
          if (after) {
            d_r = d_x_a[2 * H + k] * hns[i][k];
          } else {
            double d_rh = 0;
            for (int64_t j = 0; j < H; ++j) d_rh += d_h_a[2 * H + j] * w_hh[(2 * H + j) * H + k];
            d_r = d_rh * old[k], before[k] += d_rh * r[k];
          }
          d_x_a[k] = d_h_a[k] = d_r * r[k] * (1 - r[k]);
        }
        for (int64_t g = 0; g < 3 * H; ++g) {
          const bool candidate = g >= 2 * H;
          for (int64_t k = 0; k < H; ++k) {
            if (after || !candidate) before[k] += d_h_a[g] * w_hh[g * H + k];
            out.d_w_hh[d][g * H + k] += d_h_a[g] * old[k] * (!after && candidate ? r[k] : 1);
          }
          for (int64_t k = 0; k < I; ++k) {
            out.d_x[d][row * I + k] += d_x_a[g] * w_ih[g * I + k];
            out.d_w_ih[d][g * I + k] += d_x_a[g] * data.x[row * I + k];
          }
          if (c.bias) out.d_b_ih[d][g] += d_x_a[g], out.d_b_hh[d][g] += d_h_a[g];
        }
        d_h = before;
      }
      for (int64_t j = 0; j < H; ++j) out.d_h_0[d][b * H + j] = d_h[j];
    }
  }
  return out;
}

template <class Real>
bool same_bits(const Values<Real>& a, const Values<Real>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(Real)) == 0);
}

template <class Real>
void test_case(Case c) {
  const Data<Real> data(c);
  const auto ours = run(c, data);
  const auto truth = exact(c, data);
  const auto mine = ours.all(c.directions);
  const auto theirs = truth.all(c.directions);
  for (size_t i = 0; i < mine.size(); ++i) {
    double wrong = 0, size = 1e-30;
    for (size_t k = 0; k < theirs[i].second->size(); ++k) {
      const double e = (*mine[i].second)[k] - (*theirs[i].second)[k];
      // The gradients that come in are of size 1: a sum that cancels is held to that, not to the nothing left of it.
      wrong += e * e, size += std::max(1.0, (*theirs[i].second)[k] * (*theirs[i].second)[k]);
    }
    const double error = std::sqrt(wrong / size);  // NaN fails too
    check(mine[i].second->size() == theirs[i].second->size() && error < (sizeof(Real) == 4 ? 3e-6 : 3e-15),
          mine[i].first + " of " + c.name() + ": error " + std::to_string(error));
  }
  for (int threads : {1, 2, 3, 5}) {  // the same bits on any number of threads
    c.threads = threads;
    const auto again = run(c, data);
    const auto list = again.all(c.directions);
    for (size_t i = 0; i < mine.size(); ++i) {
      check(same_bits(*mine[i].second, *list[i].second), mine[i].first + " on other threads, " + c.name());
    }
  }
}

// A row alone, cut in two, gives the bits that it has within the batch.
template <class Real>
void test_rows(Case c) {
  const Data<Real> data(c);
  const auto together = run(c, data);
  const int64_t I = c.I, H = c.H, gates = c.reset == Reset::after ? 4 : 3;
  const Weights<Real> weights{data.w_ih[0].data(), data.w_hh[0].data(), data.b_ih[0].data(), data.b_hh[0].data(), I, H};
  const Packed<Real> packed(weights, I, H, c.reset, 1);
  for (int64_t b = 0; b < c.B; ++b) {
    Values<Real> state(data.h_0[0].begin() + b * H, data.h_0[0].begin() + (b + 1) * H);
    int64_t t = 0;
    for (int64_t steps : {c.T / 3, c.T - c.T / 3 - 1, int64_t(1)}) {
      auto output = unset<Real>(steps * H), last = unset<Real>(H), saved = unset<Real>(steps * gates * H);
      const Sizes sizes{steps, 1, I, H, nullptr, c.reset, 2};
      const Forward<Real> one{data.x.data() + (t * c.B + b) * I, c.B * I, I, &packed, state.data(), H, output.data(), H,
                              last.data(), b % 2 ? saved.data() : nullptr, false};
      forward(sizes, &one, 1);
      for (int64_t i = 0; i < steps; ++i) {
        const Real* whole = together.output.data() + ((t + i) * c.B + b) * H;
        check(std::memcmp(whole, output.data() + i * H, sizeof(Real) * H) == 0, "a row alone, " + c.name());
      }
      t += steps;
      state = last;
    }
    check(std::memcmp(together.h_n[0].data() + b * H, state.data(), sizeof(Real) * H) == 0, "h_n of a row, " + c.name());
  }
}

template <class Real>
void test_activations() {
  Values<Real> x = normal<Real>(20000, 3);
  for (double v : {0.0, -0.0, 1e-30, -1e-30, 20.0, -20.0, 60.0, -60.0, 1e30, -1e30}) x.push_back(static_cast<Real>(v));
  for (int i = -4000; i <= 4000; ++i) x.push_back(static_cast<Real>(i / 1000.0)), x.push_back(static_cast<Real>(i / 1e6));
  const int64_t n = static_cast<int64_t>(x.size());
  auto s = unset<Real>(n), t = unset<Real>(n);
  activations(x.data(), s.data(), t.data(), n);
  double worst_s = 0, worst_t = 0;
  const auto ulps = [](long double exact, Real value) {
    int exponent;
    std::frexp(static_cast<double>(exact), &exponent);
    const int digits = std::numeric_limits<Real>::digits;
    const long double ulp = std::ldexp(1.0L, std::max(exponent - digits, std::numeric_limits<Real>::min_exponent));
    return static_cast<double>(std::fabs(value - exact) / ulp);
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

template <class Real>
void test_all() {
  test_activations<Real>();
  for (Reset reset : {Reset::after, Reset::before}) {
    for (int directions : {1, 2}) {
      for (bool packed : {false, true}) {
        for (int64_t H : {1, 7, 9, 33, 64}) {
          for (int64_t B : {1, 2, 5, 13}) {
            const int64_t T = H == 9 ? 63 : 6, I = H == 33 ? 1 : H == 7 ? 40 : 5;
            test_case<Real>({T, B, I, H, reset, H != 7, packed, directions, 2});
          }
        }
      }
      for (int64_t T : {0, 1}) test_case<Real>({T, 3, 4, 5, reset, true, false, directions, 1});
      test_case<Real>({4, 0, 4, 5, reset, true, false, directions, 2});
      test_case<Real>({3, 2, 0, 5, reset, true, false, directions, 2});
      test_case<Real>({2, 300, 3, 4, reset, true, false, directions, 2});
      test_case<Real>({3, 2, 11, 240, reset, true, true, directions, 2});  // long enough to be split by units
    }
    test_rows<Real>({7, 11, 6, 20, reset, true, false, 1, 2});
    test_rows<Real>({5, 3, 6, 250, reset, true, false, 1, 2});
  }
}

}  // namespace

int main() {
  for (const char* const* name = isa_names(); *name; ++name) {
    set_isa(*name);
    test_all<float>();
    test_all<double>();
    // Many threads at once: one has the workers, the others go alone, and all get the same bits.
    const Case c{20, 24, 16, 80, Reset::after, true, false, 2, 2};
    const Data<float> data(c);
    const auto alone = run(c, data);
    std::vector<std::thread> others;
    std::vector<int> same(4, 0);
    for (size_t i = 0; i < same.size(); ++i) {
      others.emplace_back([&, i] { same[i] = same_bits(run(c, data).d_w_hh[1], alone.d_w_hh[1]); });
    }
    for (auto& other : others) other.join();
    for (int good : same) check(good, "calls from many threads");
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
