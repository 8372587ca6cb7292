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

// How the terms of a sum are multiplied: `each` of them at a time, which lie side by side in a row, and for every lane of a
// weights' vector, too. Where one instruction doesn't do it, in `parts`.
//     value(a, part), weight(w, part): the terms at a in every lane, and a vector of those at w
//     add(x, w, sum): sum + x w, for all of the terms of a part
//     whole(...): what the sum means
// The left side of the weights' gradients has `row_terms` of a row side by side, and rows and columns are filled up with zeros to
// whole numbers of `fill` terms.
template <class Stored>
struct Terms {
  static constexpr int each = 1, parts = 1, row_terms = 1, fill = 1;
  // A sum of many terms in one accumulator loses a rounding of the whole for every term, so after so many terms the
  // part is put by and a new one begun. That costs 2 % of the time and, at 768 terms, divides the error by four.
  static constexpr int64_t put_by = 64;
  using V = Vec<Stored>;
  static V value(const Stored* a, int) { return splat(*a); }
  static V weight(const Stored* w, int) { return load(w); }
  static V add(V x, V w, V sum) { return fma(x, w, sum); }
};

// The 32 bits at `from` in every lane.
inline Ints splat_bits(const void* from) {
  int32_t bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bits - Ints{};
}
inline Ints load_bits(const void* from) {
  Ints bits;
  __builtin_memcpy(&bits, from, sizeof bits);
  return bits;
}

template <>
struct Terms<bf16> {
  static constexpr int each = 2;
  using V = VecF;
#if defined(__AMX_BF16__)
  static constexpr int row_terms = 32, fill = 32;  // a matrix of 16 pairs of terms and 16 lanes at a time
  static constexpr int64_t put_by = 1024;          // 32 additions, each of a sum of 32 products
#else
  static constexpr int row_terms = 2, fill = 2;
  static constexpr int64_t put_by = 64;
#endif
#if defined(__AVX512BF16__)
  static constexpr int parts = 1;
  static Ints value(const bf16* a, int) { return splat_bits(a); }
  static Ints last_value(const bf16* a, int, int) { return a->bits - Ints{}; }
  static Ints weight(const bf16* w, int) { return load_bits(w); }
  static V add(Ints x, Ints w, V sum) { return (V)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w); }
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
  static constexpr int parts = 1;
  static Ints value(const bf16* a, int) { return splat_bits(a); }
  static Ints last_value(const bf16* a, int, int) { return a->bits - Ints{}; }
  static Ints weight(const bf16* w, int) { return load_bits(w); }
  static V add(Ints x, Ints w, V sum) { return (V)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)x, (bfloat16x8_t)w); }
#else
  static constexpr int parts = 2;
  static V half(Ints pair, int part) { return of_bits(part == 0 ? pair << 16 : pair & upper_half); }
  static V value(const bf16* a, int part) { return half(splat_bits(a), part); }
  static V last_value(const bf16* a, int, int part) { return half(a->bits - Ints{}, part); }
  static V weight(const bf16* w, int part) { return half(load_bits(w), part); }
  static V add(V x, V w, V sum) { return fma(x, w, sum); }
#endif
};

// Whole numbers in 8 bits: sums of them are exact, in any order and on any instruction set. A row begins with its scale, and a
// block of weights with those of its vectors' lanes and with sums over the weights, where the row's numbers lie `offset` higher.
template <>
struct Terms<int8_t> {
  static constexpr int each = 4, row_terms = 4, fill = 4;
  static constexpr int64_t put_by = 32768;  // sums of so many stay below 2^31
  static constexpr int row_header = 16;     // bytes
  using V = Ints;
#if defined(__AVX512VNNI__)
  static constexpr int parts = 1, offset = 128;
  static V value(const int8_t* a, int) { return splat_bits(a); }
  static V weight(const int8_t* w, int) { return load_bits(w); }
  static V add(V x, V w, V sum) { return (V)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
#elif defined(__SSE2__)
  typedef int16_t Shorts __attribute__((vector_size(vector_bytes)));
  static constexpr int parts = 2, offset = 0;
  static V half(V bytes, int part) { return part == 0 ? (V)(((Shorts)bytes << 8) >> 8) : (V)((Shorts)bytes >> 8); }
  static V value(const int8_t* a, int part) { return half(splat_bits(a), part); }
  static V weight(const int8_t* w, int part) { return half(load_bits(w), part); }
  static V add(V x, V w, V sum) {
#if defined(__AVX512F__)
    return sum + (V)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif defined(__AVX2__)
    return sum + (V)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#else
    return sum + (V)_mm_madd_epi16((__m128i)x, (__m128i)w);
#endif
  }
#else
  static constexpr int parts = 4, offset = 0;
  static V value(const int8_t* a, int part) { return a[part] - V{}; }
  static V weight(const int8_t* w, int part) { return (load_bits(w) << (24 - 8 * part)) >> 24; }
  static V add(V x, V w, V sum) { return sum + x * w; }
#endif
  static const int8_t* terms_of(const int8_t* row) { return row + row_header; }
  static VecF whole(V sum, const int8_t* row, const int8_t* block, int v, int vectors) {
    float scale;
    __builtin_memcpy(&scale, row, sizeof scale);
    const V all = load_bits(block + (vectors + v) * vector_bytes);
    return __builtin_convertvector(sum - offset * all, VecF) * (of_bits(load_bits(block + v * vector_bytes)) * splat(scale));
  }
};

constexpr int64_t sum_terms = Terms<float>::put_by;  // for sums that no product is part of

template <class Stored>
constexpr bool in_8_bits = sizeof(Stored) == 1;
template <class Stored>
constexpr bool in_16_bits = sizeof(Stored) == 2;
template <class Stored>
constexpr bool narrow = sizeof(Stored) < sizeof(Sum<Stored>);
// What a block of weights begins with, in values.
template <class Stored>
constexpr int64_t block_header(int vectors) {
  if constexpr (in_8_bits<Stored>) return 2 * vectors * vector_bytes;
  else return 0;
}
template <class Stored>
constexpr int64_t filled(int64_t terms) {
  return padded(terms, Terms<Stored>::fill);
}
template <class Stored>
inline int64_t groups(int64_t terms) {
  return filled<Stored>(terms) / Terms<Stored>::each;
}

#if defined(__AMX_BF16__)
// The processor's matrix unit. A thread that uses it says before how large its eight tiles are: 0 to 5 are sums, of max_rows rows
// and one vector; 6 holds 32 terms of max_rows rows; 7 the weights of 32 terms, in pairs, and one vector's lanes.
class MatrixUnit {
 public:
  MatrixUnit() {
    static_assert(max_rows == 8, "rows of a tile");
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } sizes;
    for (int tile = 0; tile < 8; ++tile) sizes.row_bytes[tile] = 64, sizes.rows[tile] = tile == 7 ? 16 : max_rows;
    _tile_loadconfig(&sizes);
  }
  ~MatrixUnit() { _tile_release(); }
  MatrixUnit(const MatrixUnit&) = delete;
};

// sums[m][v] += the products of `steps` times 32 terms, for vectors First ... First + 5 of N. load_rows(step) fills tile 6;
// weights_at(v, step) is where 16 pairs lie, w_step bytes apart.
template <int First, int Rows, int N, class LoadRows, class WeightsAt>
[[gnu::always_inline]] inline void six_vectors(VecF (&sums)[Rows][N], int64_t steps, const LoadRows& load_rows,
                                               const WeightsAt& weights_at, int64_t w_step) {
  constexpr int n = N - First < 6 ? N - First : 6;
#define TIDEGATE_EACH_TILE(do_this) \
  do_this(0) if constexpr (n > 1) { do_this(1) } if constexpr (n > 2) { do_this(2) } \
  if constexpr (n > 3) { do_this(3) } if constexpr (n > 4) { do_this(4) } if constexpr (n > 5) { do_this(5) }
#define TIDEGATE_ZERO(v) _tile_zero(v);
  TIDEGATE_EACH_TILE(TIDEGATE_ZERO)
  for (int64_t step = 0; step < steps; ++step) {
    load_rows(step);
#define TIDEGATE_MULTIPLY(v) _tile_loadd(7, weights_at(First + v, step), w_step); _tile_dpbf16ps(v, 6, 7);
    TIDEGATE_EACH_TILE(TIDEGATE_MULTIPLY)
  }
  alignas(64) float result[max_rows][16];
#define TIDEGATE_ADD(v) \
  _tile_stored(v, result, 64); \
  UNROLL for (int m = 0; m < Rows; ++m) sums[m][First + v] = sums[m][First + v] + load(result[m]);
  TIDEGATE_EACH_TILE(TIDEGATE_ADD)
#undef TIDEGATE_EACH_TILE
#undef TIDEGATE_ZERO
#undef TIDEGATE_MULTIPLY
#undef TIDEGATE_ADD
  if constexpr (First + n < N) six_vectors<First + n>(sums, steps, load_rows, weights_at, w_step);
}

// `multiply` by the matrix unit.
template <int Rows, int Blocks, int Each>
inline void multiply_matrices(VecF (&sums)[Rows][Blocks * Each], const bf16* const (&a)[Rows], const bf16* w, int64_t block_size,
                              int64_t K, int64_t k_step) {
  using T = Terms<bf16>;
  bool regular = Rows == max_rows;  // rows that lie at equal distances can be read as they are
  UNROLL for (int m = 1; m < Rows; ++m) regular = regular && a[m] - a[m - 1] == a[1] - a[0];
  const int64_t row_step = Rows > 1 ? (a[Rows > 1 ? 1 : 0] - a[0]) * 2 : 0;
  for (int64_t k_0 = 0; k_0 < K; k_0 += T::put_by) {
    const int64_t n = smaller(T::put_by, K - k_0);
    alignas(64) bf16 rows[max_rows][32];
    const auto load_rows = [&](int64_t step) __attribute__((always_inline)) {
      const int64_t k = k_0 + step * 32, left = K - k;
      if (regular && left >= 32) {
        _tile_loadd(6, a[0] + k, row_step);
        return;
      }
      const uint32_t which = left >= 32 ? ~0u : (1u << left) - 1;
      UNROLL for (int m = 0; m < Rows; ++m) _mm512_store_si512(rows[m], _mm512_maskz_loadu_epi16(which, a[m] + k));
      _tile_loadd(6, rows, 64);
    };
    const auto weights_at = [&](int v, int64_t step) {
      return w + (v / Each) * block_size + v % Each * 32 + (k_0 + step * 32) * k_step;
    };
    six_vectors<0>(sums, ceil_div(n, 32), load_rows, weights_at, 4 * k_step);
  }
}
#else
struct MatrixUnit {  // there is none
  MatrixUnit() {}
};
#endif

// sums[row][v] += Σ_k a[row][k] w[v][k]: `Rows` rows times `Blocks` blocks of `Each` vectors. A block's vectors lie side by side
// for every group of terms: the g-th from w[block block_size + g each k_step + v each lanes] on.
template <class Stored, int Rows, int Blocks, int Each>
inline void multiply(Vec<Stored> (&sums)[Rows][Blocks * Each], const Stored* const (&rows)[Rows], const Stored* blocks,
                     int64_t block_size, int64_t K, int64_t k_step = Each * lanes<Stored>) {
#if defined(__AMX_BF16__)
  if constexpr (in_16_bits<Stored>) return multiply_matrices<Rows, Blocks, Each>(sums, rows, blocks, block_size, K, k_step);
#endif
  using T = Terms<Stored>;
  using V = typename T::V;
  constexpr int L = lanes<Stored>, each = T::each;
  const Stored* a[Rows];
  UNROLL for (int m = 0; m < Rows; ++m) {
    if constexpr (in_8_bits<Stored>) a[m] = T::terms_of(rows[m]);
    else a[m] = rows[m];
  }
  const Stored* w = blocks + block_header<Stored>(Each);
  for (int64_t k_0 = 0; k_0 < K; k_0 += T::put_by) {
    const int64_t k_1 = smaller(k_0 + T::put_by, K);
    V s[Rows][Blocks * Each];  // local: the compiler keeps it in registers
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Each; ++v) s[m][v] = V{};
    }
    const auto group = [&](int64_t k, const auto& value_of) __attribute__((always_inline)) {
      UNROLL for (int part = 0; part < T::parts; ++part) {
        decltype(T::weight(w, 0)) wk[Blocks * Each];
        UNROLL for (int v = 0; v < Blocks * Each; ++v)
          wk[v] = T::weight(w + (v / Each) * block_size + k * k_step + v % Each * L * each, part);
        UNROLL for (int m = 0; m < Rows; ++m) {
          const auto value = value_of(a[m] + k, part);
          UNROLL for (int v = 0; v < Blocks * Each; ++v) s[m][v] = T::add(value, wk[v], s[m][v]);
        }
      }
    };
    // (Rows in 8 bits are filled up with zeros.)
    const int64_t whole = in_8_bits<Stored> ? padded(k_1, each) : k_1 - k_1 % each;
    for (int64_t k = k_0; k < whole; k += each) group(k, [](const Stored* at, int part) { return T::value(at, part); });
    if constexpr (each > 1 && !in_8_bits<Stored>) {
      if (whole < k_1) group(whole, [](const Stored* at, int part) { return T::last_value(at, 1, part); });
    }
    UNROLL for (int m = 0; m < Rows; ++m) {
      UNROLL for (int v = 0; v < Blocks * Each; ++v) {
        if constexpr (in_8_bits<Stored>) {
          sums[m][v] = sums[m][v] + T::whole(s[m][v], rows[m], blocks + (v / Each) * block_size, v % Each, Each);
        } else {
          sums[m][v] = sums[m][v] + s[m][v];
        }
      }
    }
  }
}

// sums[row][v] = Σ_i x(row, i) b[v][i] for groups i = i_0 ... i_1 - 1 of terms; a block's vectors lie one after the other.
template <class Stored, int Rows, int Blocks, class At>
[[gnu::always_inline]] inline void stretch(Vec<Stored> (&sums)[Rows][Blocks], const Stored* b, int64_t n, int64_t i_0, int64_t i_1,
                                           const At& at) {
  using T = Terms<Stored>;
  constexpr int vector = lanes<Stored> * T::each;
  Vec<Stored> s[Rows][Blocks];  // local: the compiler keeps it in registers
  UNROLL for (int r = 0; r < Rows; ++r) {
    UNROLL for (int v = 0; v < Blocks; ++v) s[r][v] = Vec<Stored>{};
  }
  for (int64_t i = i_0; i < i_1; ++i) {
    UNROLL for (int part = 0; part < T::parts; ++part) {
      decltype(T::weight(b, 0)) bi[Blocks];
      UNROLL for (int v = 0; v < Blocks; ++v) bi[v] = T::weight(b + (v * n + i) * vector, part);
      UNROLL for (int r = 0; r < Rows; ++r) {
        const auto x = T::value(at(r, i), part);
        UNROLL for (int v = 0; v < Blocks; ++v) s[r][v] = T::add(x, bi[v], s[r][v]);
      }
    }
  }
  UNROLL for (int r = 0; r < Rows; ++r) {
    UNROLL for (int v = 0; v < Blocks; ++v) sums[r][v] = s[r][v];
  }
}

// ... for all n groups, put by as in `multiply`: the weights' gradients, and the affine map in training. at(row, i): where the i-th
// `row_terms` terms of a row lie, side by side.
template <class Stored, int Rows, int Blocks, class At>
[[gnu::always_inline]] inline void sum_up(Vec<Stored> (&sums)[Rows][Blocks], const Stored* b, int64_t n, const At& at) {
  constexpr int64_t some = Terms<Stored>::put_by / Terms<Stored>::each;
#if defined(__AMX_BF16__)
  if constexpr (in_16_bits<Stored>) {
    static_assert(Rows == max_rows, "rows that nobody filled would be read");
    UNROLL for (int r = 0; r < Rows; ++r) {
      UNROLL for (int v = 0; v < Blocks; ++v) sums[r][v] = VecF{};
    }
    for (int64_t i_0 = 0; i_0 < n; i_0 += some) {
      six_vectors<0>(
          sums, (smaller(i_0 + some, n) - i_0) / 16,
          [&](int64_t step) __attribute__((always_inline)) { _tile_loadd(6, at(0, (i_0 / 16 + step)), 64); },
          [&](int v, int64_t step) { return b + (v * n + i_0 + step * 16) * 32; }, 64);
    }
    return;
  }
#endif
  stretch<Stored, Rows, Blocks>(sums, b, n, 0, smaller(some, n), at);
  for (int64_t i_0 = some; i_0 < n; i_0 += some) {
    Vec<Stored> part[Rows][Blocks];
    stretch<Stored, Rows, Blocks>(part, b, n, i_0, smaller(i_0 + some, n), at);
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
