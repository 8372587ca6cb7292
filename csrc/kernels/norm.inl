// Layer norm of a row, forwards and backwards. Part of kernels.inl.

// Layer norm of one row: n values whose lanes 0 ... of each block count, at from[block step + gate lanes + lane] for `gates`
// gates one after the other, become (v - mean) / sqrt(variance + 1e-5); returns the factor.
template <class Real>
inline Real normalise(Real* from, int64_t H, int64_t step, int gates) {
  constexpr int L = lanes<Real>;
  const auto units = [&](int64_t unit) { return static_cast<int>(smaller<int64_t>(L, H - unit)); };
  const auto sum_up = [](Vec<Real> v) {
    Real sum = 0;
    for (int lane = 0; lane < L; ++lane) sum += v[lane];
    return sum;
  };
  Vec<Real> sum = splat<Real>(0);
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) sum = sum + load_first(v, units(unit));
  }
  const Vec<Real> mean = splat(sum_up(sum) / static_cast<Real>(gates * H));
  sum = splat<Real>(0);
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) {
      const int n = units(unit);
      store_first(v, load_first(v, n) - mean, n);
      const Vec<Real> d = load_first(v, n);
      sum = fma(d, d, sum);
    }
  }
  const Real factor = 1 / square_root(sum_up(sum) / static_cast<Real>(gates * H) + Real(1e-5));
  for (int gate = 0; gate < gates; ++gate) {
    Real* v = from + gate * L;
    for (int64_t unit = 0; unit < H; unit += L, v += step) {
      const int n = units(unit);
      store_first(v, load_first(v, n) * splat(factor), n);
    }
  }
  return factor;
}

// Backwards through `normalise`: from the gradients d_y of gain * y, n values side by side as y and gain are, to those of v.
template <class Stored>
inline void normalise_back(const Stored* d_y, const Stored* y, const Sum<Stored>* gain, Sum<Stored> factor, int64_t n, Stored* to) {
  using Real = Sum<Stored>;
  constexpr int L = lanes<Stored>;
  Vec<Real> sum = splat<Real>(0), sum_y = splat<Real>(0);
  for (int64_t i = 0; i < n; i += L) {
    const int some = static_cast<int>(smaller<int64_t>(L, n - i));
    const Vec<Real> d = load_first(d_y + i, some) * load_first(gain + i, some);
    sum = sum + d;
    sum_y = fma(d, load_first(y + i, some), sum_y);
  }
  Real mean = 0, mean_y = 0;
  for (int lane = 0; lane < L; ++lane) mean += sum[lane], mean_y += sum_y[lane];
  mean /= static_cast<Real>(n), mean_y /= static_cast<Real>(n);
  for (int64_t i = 0; i < n; i += L) {
    const int some = static_cast<int>(smaller<int64_t>(L, n - i));
    const Vec<Real> d = load_first(d_y + i, some) * load_first(gain + i, some);
    const Vec<Real> v = d - splat(mean) - load_first(y + i, some) * splat(mean_y);
    store_first(to + i, v * splat(factor), some);
  }
}
