// What an update does beside the recurrence, see update.h, once, for the instruction set of vec.h. Compiled again for each set
// with TIDEGATE_ISA as its namespace, as kernels.inl is.

#include "team.h"
#include "update.h"
#include "update_kernels.h"
#include "vec.h"

#define UNROLL _Pragma("GCC unroll 32")

namespace tidegate {
namespace TIDEGATE_ISA {

#include "kernels/multiply.inl"

typedef uint32_t Bits __attribute__((vector_size(vector_bytes)));

// (Steele et al. 2014: SplitMix64.)
inline uint64_t hashed(uint64_t v) {
  v += 0x9e3779b97f4a7c15u;
  v = (v ^ (v >> 30)) * 0xbf58476d1ce4e5b9u;
  v = (v ^ (v >> 27)) * 0x94d049bb133111ebu;
  return v ^ (v >> 31);
}

inline Bits bits_of(uint32_t value) { return Bits{} + value; }

// What values of a row are multiplied with under dropout: 0, or 1 / (1 - rate).
struct Mask {
  uint64_t key;
  uint32_t below;  // hashes that are dropped
  float kept;

  Mask(double rate, uint64_t own_key)
      : key(own_key), below(static_cast<uint32_t>(rate * 4294967296.0)), kept(static_cast<float>(1 / (1 - rate))) {}

  uint32_t of_row(int64_t row) const { return static_cast<uint32_t>(hashed(key ^ hashed(static_cast<uint64_t>(row)))); }

  // ... the `lanes` values from `column` on. The finaliser of MurmurHash3, over the column times the golden ratio.
  Vec<float> at(uint32_t row_key, int64_t column) const {
    Bits v{};
    for (int i = 0; i < lanes<float>; ++i) v[i] = static_cast<uint32_t>(i);
    v = ((v + static_cast<uint32_t>(column)) * 0x9e3779b1u) ^ row_key;
    v = (v ^ (v >> 16)) * 0x85ebca6bu;
    v = (v ^ (v >> 13)) * 0xc2b2ae35u;
    v = v ^ (v >> 16);
    return v >= bits_of(below) ? splat(kept) : splat(0.0f);
  }
};

// In pieces, on as many threads as pays for so much work; `enough` is a thread's.
inline void share(int64_t all, int64_t enough, int64_t most_pieces, int threads, Work work, void* job) {
  const int64_t most = smaller<int64_t>(threads, all / enough);
  const int team = static_cast<int>(most < 1 ? 1 : most);
  run_pieces(team, pieces_of(team, most_pieces), work, job);
}

struct EncodeJob {
  const Encoder& e;
  float* to;
  int64_t* read;

  static void work(void* self, int piece, int pieces) {
    const EncodeJob& job = *static_cast<const EncodeJob*>(self);
    const Encoder& e = job.e;
    const Mask mask(e.dropout, e.key);
    const uint64_t unknown_key = hashed(~e.key);
    for (int64_t row = e.rows * piece / pieces; row < e.rows * (piece + 1) / pieces; ++row) {
      float* to = job.to + row * e.width;
      if (e.F) std::memcpy(to, e.numbers + row * e.F, sizeof(float) * static_cast<size_t>(e.F));
      const uint32_t row_key = mask.of_row(row);
      int64_t place = e.F;
      for (int64_t k = 0; k < e.columns; ++k) {
        const Embedded& of = e.of[k];
        int64_t code = e.codes[row * e.columns + k];
        if (of.rate) {
          const uint64_t drawn = hashed(unknown_key ^ hashed(static_cast<uint64_t>(row * e.columns + k)));
          if (static_cast<float>(drawn >> 40) * 0x1p-24f < of.rate[code]) code = 0;
        }
        job.read[row * e.columns + k] = code;
        const float* from = of.weight + code * of.width;
        for (int64_t i = 0; i < of.width; i += lanes<float>) {
          const int some = static_cast<int>(smaller<int64_t>(lanes<float>, of.width - i));
          store_first(to + place + i, load_first(from + i, some) * mask.at(row_key, place + i), some);
        }
        place += of.width;
      }
    }
  }
};

inline void encode(const Encoder& e, float* to, int64_t* read, int threads) {
  EncodeJob job{e, to, read};
  share(e.rows * e.width, 32768, e.rows, threads, EncodeJob::work, &job);
}

inline void encode_backward(const Encoder& e, const float* d, const int64_t* read, const int64_t* before, int64_t before_rows) {
  for (int64_t row = 0; before && row < before_rows; ++row) {
    for (int64_t k = 0; k < e.columns; ++k) {
      const Embedded& of = e.of[k];
      if (of.d_weight) {
        std::memset(of.d_weight + before[row * e.columns + k] * of.width, 0, sizeof(float) * static_cast<size_t>(of.width));
      }
    }
  }
  const Mask mask(e.dropout, e.key);
  for (int64_t row = 0; row < e.rows; ++row) {
    const uint32_t row_key = mask.of_row(row);
    int64_t place = e.F;
    for (int64_t k = 0; k < e.columns; ++k) {
      const Embedded& of = e.of[k];
      if (of.d_weight) {
        float* sum = of.d_weight + read[row * e.columns + k] * of.width;
        const float* from = d + row * e.width + place;
        for (int64_t i = 0; i < of.width; i += lanes<float>) {
          const int some = static_cast<int>(smaller<int64_t>(lanes<float>, of.width - i));
          const Vec<float> more = load_first(from + i, some) * mask.at(row_key, place + i);
          store_first(sum + i, load_first(sum + i, some) + more, some);
        }
      }
      place += of.width;
    }
  }
}

struct DropJob {
  const Dropped& d;
  const float* from;
  float* to;
  bool backward;

  static void work(void* self, int piece, int pieces) {
    const DropJob& job = *static_cast<const DropJob*>(self);
    const Dropped& d = job.d;
    const Mask mask(d.rate, d.key);
    for (int64_t i = d.count * piece / pieces; i < d.count * (piece + 1) / pieces; ++i) {
      const int64_t far = (d.rows ? d.rows[i] : i) * d.width, near = i * d.width;
      const float* from = job.from + (job.backward ? near : far);
      float* to = job.to + (job.backward ? far : near);
      if (d.rate == 0) {
        std::memcpy(to, from, sizeof(float) * static_cast<size_t>(d.width));
        continue;
      }
      const uint32_t row_key = mask.of_row(i);
      for (int64_t k = 0; k < d.width; k += lanes<float>) {
        const int some = static_cast<int>(smaller<int64_t>(lanes<float>, d.width - k));
        store_first(to + k, load_first(from + k, some) * mask.at(row_key, k), some);
      }
    }
  }
};

inline void drop(const Dropped& d, const float* from, float* to, bool backward, int threads) {
  DropJob job{d, from, to, backward};
  share(d.count * d.width, 65536, d.count, threads, DropJob::work, &job);
}

inline float sum_of(Vec<float> v) {
  float sum = 0;
  for (int lane = 0; lane < lanes<float>; ++lane) sum += v[lane];
  return sum;
}
inline double wide_sum_of(Vec<float> v) {
  double sum = 0;
  for (int lane = 0; lane < lanes<float>; ++lane) sum += static_cast<double>(v[lane]);
  return sum;
}

// e^x for x <= 0, or NaN
inline Vec<float> exp_below(Vec<float> x) {
  Vec<float> small, power;
  split_exp<float>(at_least<float>(x, ExpTerms<float>::low), small, power);
  return fma(power, small, power);
}

struct LossJob {
  static constexpr int L = lanes<float>;
  const Scores& s;
  double* of_rows;

  static void work(void* self, int piece, int pieces) {
    const LossJob& job = *static_cast<const LossJob*>(self);
    const Scores& s = job.s;
    for (int64_t i = s.count * piece / pieces; i < s.count * (piece + 1) / pieces; ++i) {
      float* scores = s.scores + i * s.K * s.W;
      const int64_t row = s.rows[i];
      const int64_t first = row * s.K;
      double sum = 0;
      if (s.kind == Loss::classes) {
        const int64_t* y = static_cast<const int64_t*>(s.y) + first;
        for (int64_t k = 0; k < s.K; ++k) sum += job.of_class(scores + k * s.W, y[k]);
      } else {
        const float* y = static_cast<const float*>(s.y) + first * s.W;
        if (s.kind == Loss::labels) {
          sum = job.of_labels(scores, y);
        } else {
          if (s.residual) job.add_residual(scores, s.numbers + row * s.F);
          sum = job.of_numbers(scores, y);
        }
      }
      job.of_rows[i] = sum;
    }
  }

  void add_residual(float* scores, const float* numbers) const {
    for (int64_t k = 0; k < s.K; ++k) {
      for (int64_t w = 0; w < s.W; ++w) scores[k * s.W + w] += numbers[s.residual[w]];
    }
  }

  double of_class(float* x, int64_t target) const {
    const int64_t W = s.W;
    if (target < 0) {
      std::memset(x, 0, sizeof(float) * static_cast<size_t>(W));
      return 0;
    }
    float largest = x[0];
    int64_t w = 0;
    if (W >= L) {
      Vec<float> most = load(x);
      for (w = L; w + L <= W; w += L) {
        const Vec<float> v = load(x + w);
        most = v > most ? v : most;
      }
      for (int lane = 0; lane < L; ++lane) largest = most[lane] > largest ? most[lane] : largest;
    }
    for (; w < W; ++w) largest = x[w] > largest ? x[w] : largest;
    const float own = x[target];
    Vec<float> sums = {};
    for (w = 0; w < W; w += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, W - w));
      const Vec<float> e = exp_below(load_first(x + w, some) - splat(largest));
      store_first(x + w, e, some);
      sums += some == L ? e : first_of(e, some);
    }
    const float sum = sum_of(sums);
    const double weight = s.class_weights ? static_cast<double>(s.class_weights[target]) : 1.0;
    const float each = static_cast<float>(weight * s.scale / static_cast<double>(sum));
    for (w = 0; w < W; w += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, W - w));
      store_first(x + w, load_first(x + w, some) * splat(each), some);
    }
    x[target] -= static_cast<float>(weight * s.scale);
    return weight * (__builtin_log(static_cast<double>(sum)) + (static_cast<double>(largest) - static_cast<double>(own)));
  }

  static Vec<float> first_of(Vec<float> v, int n) {
    for (int lane = n; lane < L; ++lane) v[lane] = 0;
    return v;
  }

  // max(s, 0) - s y + ln(1 + e^-|s|) of each label. The logarithm is taken of a product of many such terms, each at most 2.
  double of_labels(float* x, const float* y) const {
    const int64_t n = s.K * s.W;
    double sum = 0, product = 1;
    int factors = 0;
    for (int64_t k = 0; k < n; k += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, n - k));
      const Vec<float> v = load_first(x + k, some), truth = load_first(y + k, some), zero = {};
      const auto known = truth == truth;
      const Vec<float> target = known ? truth : zero;
      const Vec<float> u = exp_below(v > zero ? -v : v);
      const Vec<float> terms = known ? (v > zero ? v : zero) - v * target : zero;
      const Vec<float> d = known ? (sigmoid<float>(v) - target) * splat(static_cast<float>(s.scale)) : zero;
      store_first(x + k, d, some);
      for (int lane = 0; lane < some; ++lane) {
        sum += static_cast<double>(terms[lane]);
        if (known[lane]) product *= 1.0 + static_cast<double>(u[lane]);
      }
      if ((factors += L) > 900) sum += __builtin_log(product), product = 1, factors = 0;
    }
    return sum + __builtin_log(product);
  }

  double of_numbers(float* x, const float* y) const {
    const int64_t n = s.K * s.W;
    double sum = 0;
    for (int64_t k = 0; k < n; k += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, n - k));
      const Vec<float> v = load_first(x + k, some), truth = load_first(y + k, some), zero = {};
      const Vec<float> off = truth == truth ? v - truth : zero;
      store_first(x + k, off * splat(static_cast<float>(2 * s.scale)), some);
      sum += wide_sum_of(off * off);  // (lanes past the end are 0 - 0)
    }
    return sum;
  }
};

inline void loss(const Scores& s, double* of_rows, int threads) {
  LossJob job{s, of_rows};
  share(s.count * s.K * s.W, 16384, s.count, threads, LossJob::work, &job);
}

constexpr int64_t adam_block = 4096;  // values

struct AdamJob {
  static constexpr int L = lanes<float>;
  const Adam& a;
  const Weights32* all;
  int64_t count, blocks;
  double* of_blocks;
  float times;  // what gradients are multiplied with

  // Calls take(weights, from, to, block) for the blocks of one piece: values from ... to - 1 of some weights.
  template <class Take>
  void each_block(int piece, int pieces, const Take& take) const {
    const int64_t first = blocks * piece / pieces, end = blocks * (piece + 1) / pieces;
    int64_t block = 0;
    for (int64_t i = 0; i < count && block < end; ++i) {
      if (!all[i].g) continue;
      for (int64_t from = 0; from < all[i].n && block < end; from += adam_block, ++block) {
        if (block >= first) take(all[i], from, smaller(from + adam_block, all[i].n), block);
      }
    }
  }

  static void add_up(void* self, int piece, int pieces) {
    const AdamJob& job = *static_cast<const AdamJob*>(self);
    job.each_block(piece, pieces, [&](const Weights32& w, int64_t from, int64_t to, int64_t block) {
      Vec<float> sums[4] = {};
      int64_t i = from;
      for (; i + 4 * L <= to; i += 4 * L) {
        UNROLL for (int k = 0; k < 4; ++k) {
          const Vec<float> g = load(w.g + i + k * L);
          sums[k] = fma(g, g, sums[k]);
        }
      }
      for (; i < to; i += L) {
        const Vec<float> g = load_first(w.g + i, static_cast<int>(smaller<int64_t>(L, to - i)));
        sums[0] = fma(g, g, sums[0]);
      }
      double sum = 0;
      for (const Vec<float>& s : sums) sum += wide_sum_of(s);
      job.of_blocks[block] = sum;
    });
  }

  static void update(void* self, int piece, int pieces) {
    const AdamJob& job = *static_cast<const AdamJob*>(self);
    const Adam& a = job.a;
    const Vec<float> times = splat(job.times), keep = splat(static_cast<float>(1 - a.lr * a.weight_decay));
    const Vec<float> old_m = splat(static_cast<float>(a.beta1)), new_m = splat(static_cast<float>(1 - a.beta1));
    const Vec<float> old_v = splat(static_cast<float>(a.beta2)), new_v = splat(static_cast<float>(1 - a.beta2));
    const Vec<float> eps = splat(static_cast<float>(a.eps));
    job.each_block(piece, pieces, [&](const Weights32& w, int64_t from, int64_t to, int64_t) {
      const Vec<float> rate = splat(static_cast<float>(-a.lr / (1 - __builtin_pow(a.beta1, w.step))));
      const Vec<float> root = splat(static_cast<float>(1 / __builtin_sqrt(1 - __builtin_pow(a.beta2, w.step))));
      for (int64_t i = from; i < to; i += L) {
        const int some = static_cast<int>(smaller<int64_t>(L, to - i));
        const Vec<float> g = load_first(w.g + i, some) * times;
        Vec<float> m = load_first(w.m + i, some), v = load_first(w.v + i, some), p = load_first(w.p + i, some);
        m = fma(new_m, g, old_m * m);
        v = fma(new_v * g, g, old_v * v);
        p = fma(rate, m / fma(square_roots(v), root, eps), p * keep);
        store_first(w.m + i, m, some), store_first(w.v + i, v, some), store_first(w.p + i, p, some);
      }
    });
  }

  static Vec<float> square_roots(Vec<float> v) {
#if defined(__AVX512F__)
    return (Vec<float>)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
    return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#else
    for (int lane = 0; lane < L; ++lane) v[lane] = square_root(v[lane]);
    return v;
#endif
  }
};

inline int64_t blocks_of(const Weights32* all, int64_t count) {
  int64_t blocks = 0;
  for (int64_t i = 0; i < count; ++i) blocks += all[i].g ? ceil_div(all[i].n, adam_block) : 0;
  return blocks;
}

inline void adam(const Adam& a, const Weights32* all, int64_t count, double* of_blocks, int threads) {
  AdamJob job{a, all, count, blocks_of(all, count), of_blocks, 1};
  if (a.clip > 0) {
    share(job.blocks, 16, job.blocks, threads, AdamJob::add_up, &job);
    double sum = 0;
    for (int64_t b = 0; b < job.blocks; ++b) sum += of_blocks[b];
    const double share = a.clip / (__builtin_sqrt(sum) + 1e-6);
    job.times = share > 1 ? 1 : static_cast<float>(share);  // (NaN stays NaN)
  }
  share(job.blocks, 16, job.blocks, threads, AdamJob::update, &job);
}

constexpr UpdateKernels update_kernels = {encode, encode_backward, drop, loss, blocks_of, adam};

}  // namespace TIDEGATE_ISA
}  // namespace tidegate
