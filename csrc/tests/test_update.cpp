// What update.h offers, at odd sizes, on every instruction set of this machine: every value against its formula in double, in
// memory of just the size that is told, so that the sanitizers see one value too many. A program of its own: `make test-native`,
// `make sanitize`.

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../gru.h"
#include "../update.h"
#include "checks.h"

using namespace tidegate;

namespace {

using Floats = std::vector<float>;
using Integers = std::vector<int64_t>;

Floats normal(int64_t n) {
  Floats v(static_cast<size_t>(n));
  for (float& value : v) value = static_cast<float>(std::normal_distribution<double>()(generator));
  return v;
}

Integers drawn(int64_t n, int64_t below) {
  Integers v(static_cast<size_t>(n));
  for (int64_t& value : v) value = static_cast<int64_t>(generator()) % below;
  return v;
}

bool near(double a, double b) { return std::abs(a - b) <= 1e-5 * (1 + std::abs(b)); }

void test_encoder(int64_t rows, int64_t F, int64_t width, int threads, const std::string& name) {
  const Floats numbers = normal(rows * F), weights = normal(7 * width), rates(7, 0.5f);
  Floats gradient(static_cast<size_t>(7 * width), 0.0f);
  const Integers codes = drawn(rows * 2, 7);
  const Embedded of[] = {{weights.data(), rates.data(), gradient.data(), width}, {weights.data(), nullptr, nullptr, width}};
  const Encoder e{numbers.data(), codes.data(), of, rows, F, 2, F + 2 * width, 0.25, 77};
  Floats to(static_cast<size_t>(rows * e.width), NAN);
  Integers read(static_cast<size_t>(rows * 2));
  encode(e, to.data(), read.data(), threads);
  bool good = true;
  std::vector<double> sums(static_cast<size_t>(7 * width));
  const Floats d = normal(rows * e.width);
  for (int64_t row = 0; row < rows; ++row) {
    good = good && read[row * 2 + 1] == codes[row * 2 + 1] && (read[row * 2] == 0 || read[row * 2] == codes[row * 2]);
    for (int64_t i = 0; i < F; ++i) good = good && to[row * e.width + i] == numbers[row * F + i];
    for (int64_t i = 0; i < 2 * width; ++i) {
      const float w = weights[read[row * 2 + i / width] * width + i % width], y = to[row * e.width + F + i];
      good = good && (y == 0 || near(y, w / 0.75));
      if (i < width && y != 0) sums[read[row * 2] * width + i] += d[row * e.width + F + i] / 0.75;
    }
  }
  check(good, name + ": encode");
  encode_backward(e, d.data(), read.data(), nullptr, 0);
  encode_backward(e, d.data(), read.data(), read.data(), rows);  // twice: the second one begins at 0
  good = true;
  for (size_t i = 0; i < sums.size(); ++i) good = good && near(gradient[i], sums[i]);
  check(good, name + ": encode_backward");
}

void test_drop(int64_t all, int64_t width, int threads, const std::string& name) {
  Integers rows;
  for (int64_t row = 0; row < all; row += 2) rows.push_back(row);
  const int64_t count = static_cast<int64_t>(rows.size());
  const Floats x = normal(all * width);
  const Dropped d{rows.data(), count, width, 0.5, 5};
  Floats y(static_cast<size_t>(count * width), NAN), back(static_cast<size_t>(all * width), NAN);
  drop(d, x.data(), y.data(), threads);
  drop_backward(d, y.data(), back.data(), all, threads);
  bool good = true;
  for (int64_t row = 0; row < all; ++row) {
    for (int64_t i = 0; i < width; ++i) {
      const float here = row % 2 ? 0.0f : y[row / 2 * width + i];
      good = good && (here == 0 || here == 2 * x[row * width + i]) && back[row * width + i] == 2 * here;
    }
  }
  check(good, name + ": drop");
}

void test_loss(int64_t rows, int64_t W, int threads, const std::string& name) {
  Integers at;
  for (int64_t row = 0; row < rows; ++row) at.push_back(row);
  for (Loss kind : {Loss::classes, Loss::labels, Loss::numbers}) {
    Integers classes = drawn(rows, W);
    Floats y = normal(rows * W);
    if (kind == Loss::labels) {
      for (float& value : y) value = value > 0 ? 1.0f : 0.0f;
    }
    for (int64_t row = 1; row < rows; row += 3) classes[row] = -100, y[row * W] = NAN;
    const Floats before = normal(rows * W);
    Floats scores = before;
    const void* given = kind == Loss::classes ? static_cast<const void*>(classes.data()) : y.data();
    std::vector<double> of_rows(static_cast<size_t>(rows));
    const double found =
        loss({kind, scores.data(), at.data(), given, nullptr, nullptr, nullptr, rows, 1, W, 0, 0.5}, of_rows.data(), threads);
    double sum = 0;
    bool good = true;
    for (int64_t row = 0; row < rows; ++row) {
      double total = 0;
      for (int64_t w = 0; w < W; ++w) total += std::exp(static_cast<double>(before[row * W + w]));
      if (kind == Loss::classes && classes[row] >= 0) {
        sum += std::log(total) - static_cast<double>(before[row * W + classes[row]]);
      }
      for (int64_t w = 0; w < W; ++w) {
        const double s = static_cast<double>(before[row * W + w]), t = static_cast<double>(y[row * W + w]);
        double gradient = 0;
        if (kind == Loss::classes) {
          if (classes[row] >= 0) gradient = std::exp(s) / total - (w == classes[row]);
        } else if (!std::isnan(t)) {
          sum += kind == Loss::labels ? std::log1p(std::exp(s)) - s * t : (s - t) * (s - t);
          gradient = kind == Loss::labels ? 1 / (1 + std::exp(-s)) - t : 2 * (s - t);
        }
        good = good && near(scores[row * W + w], 0.5 * gradient);
      }
    }
    check(good, name + ": the loss's gradient");
    check(near(found, sum), name + ": the loss");
  }
}

void test_adam(int64_t n, int threads, const std::string& name) {
  Floats p = normal(n), m = normal(n), v = normal(n), q = normal(3), q_m(3), q_v(3);
  for (float& value : v) value *= value;
  const Floats g = normal(n), p_0 = p, m_0 = m, v_0 = v, q_0 = q;
  const Weights32 all[] = {{p.data(), m.data(), v.data(), g.data(), n, 4}, {q.data(), q_m.data(), q_v.data(), nullptr, 3, 0}};
  std::vector<double> of_blocks(static_cast<size_t>(adam_blocks(all, 2)));
  adam({0.1, 0.9, 0.999, 1e-8, 0.2, 0.5}, all, 2, of_blocks.data(), threads);
  double norm = 0;
  for (float value : g) norm += static_cast<double>(value) * static_cast<double>(value);
  const double times = std::min(1.0, 0.5 / (std::sqrt(norm) + 1e-6));
  bool good = q == q_0;
  for (int64_t i = 0; i < n; ++i) {
    const double grad = static_cast<double>(g[i]) * times;
    const double new_m = 0.9 * static_cast<double>(m_0[i]) + 0.1 * grad;
    const double new_v = 0.999 * static_cast<double>(v_0[i]) + 0.001 * grad * grad;
    const double step = new_m / (1 - std::pow(0.9, 4)) / (std::sqrt(new_v / (1 - std::pow(0.999, 4))) + 1e-8);
    good = good && near(m[i], new_m) && near(v[i], new_v) && near(p[i], static_cast<double>(p_0[i]) * 0.98 - 0.1 * step);
  }
  check(good, name + ": adam");
}

void test_cut() {
  const Floats numbers = normal(9 * 2), y = normal(9);
  const Integers codes = drawn(9, 5), starts{0, 4}, lengths{4, 2}, limits{4, 9};
  Floats to(16, NAN), y_to(8, 7.0f);
  Integers codes_to(8);
  cut({starts.data(), lengths.data(), limits.data(), nullptr, 4, 2, 2, 1, numbers.data(), codes.data(),
       reinterpret_cast<const char*>(y.data()), 4, false, -100, nullptr, 1, to.data(), codes_to.data(),
       reinterpret_cast<char*>(y_to.data())});
  bool good = true;
  for (int64_t t = 0; t < 4; ++t) {
    for (int64_t b = 0; b < 2; ++b) {
      const int64_t step = starts[b] + std::min(t, lengths[b] - 1), row = 2 * t + b;
      good = good && to[2 * row + 1] == numbers[2 * step + 1] && codes_to[row] == codes[step];
      const bool known = t < lengths[b] && step + 1 < limits[b];
      good = good && (known ? y_to[row] == y[step + 1] : std::isnan(y_to[row]));
    }
  }
  check(good, "cut");
}

}  // namespace

int main() {
  test_cut();
  for (const char* const* isa = isa_names(); *isa; ++isa) {
    set_isa(*isa);
    for (int threads : {1, 3}) {
      const std::string name = std::string(*isa) + ", " + std::to_string(threads) + " threads";
      for (int64_t width : {1, 7, 16, 33}) test_encoder(5 * width, width % 3, width, threads, name);
      for (int64_t width : {1, 16, 45}) test_drop(11, width, threads, name), test_loss(13, width, threads, name);
      test_drop(3000, 100, threads, name);
      test_loss(3000, 33, threads, name);
      for (int64_t n : {1, 17, 4096, 200001}) test_adam(n, threads, name);
    }
  }
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures ? 1 : 0;
}
