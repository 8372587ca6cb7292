// The product that every sum over inputs or units runs through, and the tiles it is computed in. Part of kernels.inl.

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
// side by side for every k: w[block block_size + k k_step + v lanes].
template <class Real, int Rows, int Blocks, int Each>
inline void multiply(Vec<Real> (&sums)[Rows][Blocks * Each], const Real* const (&a)[Rows], const Real* w,
                     int64_t block_size, int64_t K, int64_t k_step = Each * lanes<Real>) {
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
        wk[v] = load(w + (v / Each) * block_size + k * k_step + v % Each * L);
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

// sums[row][v] = Σ_i value(row, i) b[v][i] for i = i_0 ... i_1 - 1; a block's vectors lie one after the other.
template <class Real, int Rows, int Blocks, class Value>
[[gnu::always_inline]] inline void stretch(Vec<Real> (&sums)[Rows][Blocks], const Real* b, int64_t K, int64_t i_0, int64_t i_1,
                                           const Value& value) {
  constexpr int L = lanes<Real>;
  Vec<Real> s[Rows][Blocks];  // local: the compiler keeps it in registers
  UNROLL for (int r = 0; r < Rows; ++r) {
    UNROLL for (int v = 0; v < Blocks; ++v) s[r][v] = splat<Real>(0);
  }
  for (int64_t i = i_0; i < i_1; ++i) {
    Vec<Real> bi[Blocks];
    UNROLL for (int v = 0; v < Blocks; ++v) bi[v] = load(b + (v * K + i) * L);
    UNROLL for (int r = 0; r < Rows; ++r) {
      const Vec<Real> x = splat(value(r, i));
      UNROLL for (int v = 0; v < Blocks; ++v) s[r][v] = fma(x, bi[v], s[r][v]);
    }
  }
  UNROLL for (int r = 0; r < Rows; ++r) {
    UNROLL for (int v = 0; v < Blocks; ++v) sums[r][v] = s[r][v];
  }
}

// ... for all of K, put by as in `multiply`: the weights' gradients, and the affine map in training.
template <class Real, int Rows, int Blocks, class Value>
[[gnu::always_inline]] inline void sum_up(Vec<Real> (&sums)[Rows][Blocks], const Real* b, int64_t K, const Value& value) {
  stretch<Real, Rows, Blocks>(sums, b, K, 0, smaller(sum_terms, K), value);
  for (int64_t i_0 = sum_terms; i_0 < K; i_0 += sum_terms) {
    Vec<Real> part[Rows][Blocks];
    stretch<Real, Rows, Blocks>(part, b, K, i_0, smaller(i_0 + sum_terms, K), value);
    UNROLL for (int r = 0; r < Rows; ++r) {
      UNROLL for (int v = 0; v < Blocks; ++v) sums[r][v] = sums[r][v] + part[r][v];
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
