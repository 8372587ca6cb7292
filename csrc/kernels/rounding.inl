// Rounding to what is stored: of single values, and of rows that go into a product. Part of kernels.inl.

template <class Stored>
inline Stored rounded(Sum<Stored> value) {
  return value;
}
template <>
inline bf16 rounded<bf16>(float value) {
  const uint32_t bits = static_cast<uint32_t>(rounded(splat(value))[0]);
  return {static_cast<uint16_t>(bits >> 16)};
}

// To 8 bits: v becomes the whole number nearest to v / scale, -127 ... 127, with scale = max|v| / 127 over a row (the C export does the
// same). A row with a value that is not finite has the scale NaN.
inline float scale_of(const float* row, int64_t n) {
  constexpr int L = lanes<float>;
  VecF most = splat(0.0f), strange = splat(0.0f);
  for (int64_t i = 0; i < n; i += L) {
    const VecF v = load_first(row + i, static_cast<int>(smaller<int64_t>(L, n - i)));
    const VecF size = v < splat(0.0f) ? -v : v;
    most = size > most ? size : most;
    strange = strange + v * splat(0.0f);
  }
  float scale = 0, nan = 0;
  for (int lane = 0; lane < L; ++lane) {
    scale = most[lane] > scale ? most[lane] : scale;
    nan += strange[lane];
  }
  return scale / 127 + nan;
}
inline int in_scale(float value, float scale) {
  if (!(scale > 0)) return 0;
  const float whole = __builtin_rintf(value / scale);  // (of the smallest numbers the scale itself is rough)
  return static_cast<int>(whole > 127 ? 127 : whole < -127 ? -127 : whole);
}

// A row as an operand of products.
template <class Stored>
inline void round_row(const Sum<Stored>* from, int64_t n, Stored* to) {
  constexpr int L = lanes<float>;
  if constexpr (in_8_bits<Stored>) {
    using T = Terms<Stored>;
    typedef int8_t Bytes __attribute__((vector_size(L)));
    const float scale = scale_of(from, n);
    __builtin_memcpy(to, &scale, sizeof scale);
    int8_t* numbers = to + T::row_header;
    const int64_t end = padded(n, T::each);
    for (int64_t i = 0; i < end; i += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, end - i)), given = static_cast<int>(smaller<int64_t>(some, n - i));
      VecF v = splat(0.0f);
      if (scale > 0) v = at_most(at_least(load_first(from + i, given) / splat(scale), -127.0f), 127.0f);
      // (Beyond 2^23 a float32 has no fraction: what is added is rounded to a whole number, in the low bits.)
      const Bytes bytes = __builtin_convertvector(bits_of(v + splat(12582912.0f)) + T::offset, Bytes);
      __builtin_memcpy(numbers + i, &bytes, static_cast<size_t>(some));
    }
  } else {
    for (int64_t i = 0; i < n; i += L) {
      const int some = static_cast<int>(smaller<int64_t>(L, n - i));
      store_first(to + i, load_first(from + i, some), some);
    }
  }
}
template <class Stored>
constexpr int64_t operand_size(int64_t n) {  // values of a row as an operand, filled up to whole vectors
  if constexpr (in_8_bits<Stored>) return padded(16 + padded(n, 4), 64);
  else return padded(n, 32);
}
