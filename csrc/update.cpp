// What an update does beside the recurrence: the parts without arithmetic, and the way to the kernels of the instruction set.

#include "update.h"

#include <cstring>

#include "gru.h"
#include "update_kernels.h"

namespace tidegate {
namespace {

// By the name of the recurrence's: there is no choice of its own.
const UpdateKernels& kernels() {
#if defined(TIDEGATE_X86)
  const char* name = isa_name();
  if (std::strncmp(name, "avx512", 6) == 0) return update_avx512;
  if (std::strncmp(name, "avx2", 4) == 0) return update_avx2;
#endif
  return update_baseline;
}

inline bool there(int64_t y) { return y >= 0; }
inline bool there(float y) { return y == y; }

template <class Value>
Scored scored(const Value* y, int64_t rows, int64_t per_row, int64_t* to) {
  Scored found{0, 0};
  for (int64_t row = 0; row < rows; ++row) {
    int64_t here = 0;
    for (int64_t k = 0; k < per_row; ++k) here += there(y[row * per_row + k]);
    to[found.rows] = row;
    found.rows += here > 0, found.targets += here;
  }
  return found;
}

void blank(char* y, int64_t bytes, bool of_classes, int64_t missing) {
  constexpr uint32_t nan = 0x7fc00000;
  if (of_classes) {
    std::memcpy(y, &missing, sizeof missing);
  } else {
    for (int64_t at = 0; at < bytes; at += 4) std::memcpy(y + at, &nan, sizeof nan);
  }
}

template <class Value>
void copy(Value* to, const Value* from, int64_t n) {
  if (n > 0) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(Value));
}

}  // namespace

void cut(const Cut& c) {
  const int64_t K = c.horizon > 0 ? c.horizon : 1, first = c.horizon > 0 ? 1 : 0;
  for (int64_t t = 0; t < c.T; ++t) {
    for (int64_t b = 0; b < c.B; ++b) {
      const bool inside = t < c.lengths[b];
      const int64_t step = c.starts[b] + (inside ? t : c.lengths[b] - 1), row = t * c.B + b;
      copy(c.numbers_to + row * c.F, c.numbers + step * c.F, c.F);
      copy(c.codes_to + row * c.C, c.codes + step * c.C, c.C);
      if (c.owners) continue;
      for (int64_t k = 0; k < K; ++k) {
        char* to = c.y_to + (row * K + k) * c.y_bytes;
        const int64_t at = step + first + k;
        const bool known = inside && at < c.limits[b] && (!c.stretch || c.stretch[at] == c.stretch[step]);
        if (known) copy(to, c.y + at * c.y_bytes, c.y_bytes);
        else blank(to, c.y_bytes, c.of_classes, c.missing);
      }
    }
  }
  if (!c.owners) return;
  for (int64_t b = 0; b < c.B; ++b) copy(c.y_to + b * c.y_bytes, c.y + c.owners[b] * c.y_bytes, c.y_bytes);
}

Scored scored_rows(const int64_t* y, int64_t rows, int64_t per_row, int64_t* to) { return scored(y, rows, per_row, to); }
Scored scored_rows(const float* y, int64_t rows, int64_t per_row, int64_t* to) { return scored(y, rows, per_row, to); }

void encode(const Encoder& e, float* to, int64_t* read, int threads) { kernels().encode(e, to, read, threads); }
void encode_backward(const Encoder& e, const float* d, const int64_t* read, const int64_t* before, int64_t before_rows) {
  kernels().encode_backward(e, d, read, before, before_rows);
}

void drop(const Dropped& d, const float* x, float* y, int threads) { kernels().drop(d, x, y, false, threads); }
void drop_backward(const Dropped& d, const float* d_y, float* d_x, int64_t all, int threads) {
  if (d.rows && d.count < all) std::memset(d_x, 0, sizeof(float) * static_cast<size_t>(all * d.width));
  kernels().drop(d, d_y, d_x, true, threads);
}

double loss(const Scores& s, double* of_rows, int threads) {
  kernels().loss(s, of_rows, threads);
  double sum = 0;
  for (int64_t i = 0; i < s.count; ++i) sum += of_rows[i];
  return sum;
}

int64_t adam_blocks(const Weights32* all, int64_t count) { return kernels().adam_blocks(all, count); }
void adam(const Adam& a, const Weights32* all, int64_t count, double* of_blocks, int threads) {
  kernels().adam(a, all, count, of_blocks, threads);
}

}  // namespace tidegate
