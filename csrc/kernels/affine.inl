// The affine map: what stands on a recurrence. Part of kernels.inl.

template <class Real>
struct AffineJob {
  const Affine<Real>& a;
  // Rows and outputs of a tile. A sum is added up alone and always in the same order, whatever its tile.
  static constexpr int tile_rows = 2, tile_outputs = 4;

  static void work(void* self, int member, int members) {
    const Affine<Real>& a = static_cast<const AffineJob*>(self)->a;
    const int64_t end = a.rows * (member + 1) / members;
    int64_t row = a.rows * member / members;
    for (; row + tile_rows <= end; row += tile_rows) outputs<tile_rows>(a, row);
    for (; row < end; ++row) outputs<1>(a, row);
  }

  template <int Rows>
  static void outputs(const Affine<Real>& a, int64_t row) {
    int64_t output = 0;
    for (; output + tile_outputs <= a.O; output += tile_outputs) tile<Rows, tile_outputs>(a, row, output);
    for (; output < a.O; ++output) tile<Rows, 1>(a, row, output);
  }

  template <int Rows, int Outputs>
  static void tile(const Affine<Real>& a, int64_t row, int64_t output) {
    constexpr int L = lanes<Real>;
    Vec<Real> sums[Rows * Outputs] = {};
    for (int64_t i = 0; i < a.I; i += L) {
      const int n = static_cast<int>(smaller<int64_t>(L, a.I - i));
      Vec<Real> x[Rows];
      UNROLL for (int r = 0; r < Rows; ++r) x[r] = load_first(a.x + (row + r) * a.x_row + i, n);
      UNROLL for (int o = 0; o < Outputs; ++o) {
        const Vec<Real> w = load_first(a.w + (output + o) * a.I + i, n);
        UNROLL for (int r = 0; r < Rows; ++r) sums[r * Outputs + o] = fma(x[r], w, sums[r * Outputs + o]);
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int o = 0; o < Outputs; ++o) {
        Real sum = 0;
        for (int lane = 0; lane < L; ++lane) sum += sums[r * Outputs + o][lane];
        a.y[(row + r) * a.O + output + o] = a.b ? sum + a.b[output + o] : sum;
      }
    }
  }
};

template <class Real>
void affine(const Affine<Real>& a, int threads) {
  AffineJob<Real> job{a};
  const int64_t enough = a.rows * a.I * a.O / 200000;
  const int64_t most = smaller<int64_t>(smaller<int64_t>(threads, a.rows), enough);
  const int team = static_cast<int>(most < 1 ? 1 : most);
  run_pieces(team, pieces_of(team, a.rows / AffineJob<Real>::tile_rows), AffineJob<Real>::work, &job);
}
