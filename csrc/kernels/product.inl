// The affine map and its gradients for training, as matrix products in blocks. Part of kernels.inl.
//
//     y = x W^T + b        d_x = d_y W        d_W = d_y^T x        d_b = the sum of d_y over its rows
//
// A sum runs in the order k = 0, 1, 2 ... through stretches of `product_terms`, which depend on nothing: so its bits are the
// same in any tile, and on any number of threads.

constexpr int64_t product_terms = 256;    // a stretch of a sum: that many rows of three vectors of b stay near the core
constexpr int64_t product_rows = 1024, product_columns = 1024;  // of a and b that are packed at once; multiples of a tile's

template <class Real>
inline int64_t product_scratch(int64_t M, int64_t N, int64_t K) {
  const int64_t k = smaller(K, product_terms);
  return k * (padded(smaller(M, product_rows), max_rows) + padded(smaller(N, product_columns), lanes<Real>));
}

template <class Real>
struct ProductMember {
  static constexpr int L = lanes<Real>;
  const Matrices<Real>& p;
  Real *left, *right;
  Worker worker;
  int piece, pieces;  // which one is worked on
  int64_t m_0, n_0, k_0, m, n, k;  // the rows, columns and terms that are worked on: where they begin and how many they are

  void of_mine(int64_t all, int64_t& from, int64_t& to) const {
    from = all * piece / pieces, to = all * (piece + 1) / pieces;
  }

  // right: block of columns, term, lane
  void pack_right() const {
    int64_t block, end;
    for (of_mine(ceil_div(n, L), block, end); block < end; ++block) {
      const int some = static_cast<int>(smaller<int64_t>(L, n - block * L));
      const Real* from = p.b + k_0 * p.b_row + (n_0 + block * L) * p.b_column;
      Real* to = right + block * k * L;
      if (p.b_column == 1) {
        for (int64_t i = 0; i < k; ++i) store(to + i * L, load_first(from + i * p.b_row, some));
      } else {
        for (int lane = 0; lane < L; ++lane) {
          for (int64_t i = 0; i < k; ++i) to[i * L + lane] = lane < some ? from[i * p.b_row + lane * p.b_column] : Real(0);
        }
      }
    }
  }

  [[gnu::always_inline]] inline void pack_panel(const Real* from, Real* to, int some, Real (&sum)[max_rows]) const {
    for (int64_t i_0 = 0; i_0 < k; i_0 += sum_terms) {
      Real part[max_rows] = {};
      for (int64_t i = i_0; i < smaller(i_0 + sum_terms, k); ++i) {
        UNROLL for (int r = 0; r < max_rows; ++r) {
          const Real value = r < some ? from[i * p.a_column + r] : Real(0);
          to[i * max_rows + r] = value, part[r] += value;
        }
      }
      for (int r = 0; r < max_rows; ++r) sum[r] += part[r];
    }
  }

  // left, where a's columns are the rows of what is given: panel of max_rows rows, term, row in the panel
  void pack_left() const {
    int64_t panel, end;
    for (of_mine(ceil_div(m, max_rows), panel, end); panel < end; ++panel) {
      const int some = static_cast<int>(smaller<int64_t>(max_rows, m - panel * max_rows));
      const Real* from = p.a + m_0 + panel * max_rows + k_0 * p.a_column;
      Real* to = left + panel * k * max_rows;
      Real sum[max_rows] = {};
      if (some == max_rows) pack_panel(from, to, max_rows, sum);  // a copy whose length the compiler knows
      else pack_panel(from, to, some, sum);
      if (!p.a_sums) continue;
      Real* sums = p.a_sums + m_0 + panel * max_rows;
      for (int r = 0; r < some; ++r) sums[r] = k_0 == 0 ? sum[r] : sums[r] + sum[r];
    }
  }

  // Some rows of c, from row `row` of those worked on, times `Blocks` blocks of columns.
  template <int Blocks>
  struct Tile {
    const ProductMember& me;
    int64_t row, block;

    template <int Rows>
    TILE void run(int64_t) const {
      const Matrices<Real>& p = me.p;
      const Real* right = me.right + block * me.k * L;
      Vec<Real> sums[Rows][Blocks];
      if (p.packs_a) {
        const Real* panel = me.left + row * me.k;
        sum_up<Real, Rows, Blocks>(sums, right, me.k, [panel](int r, int64_t i) { return panel + i * max_rows + r; });
      } else {
        const Real* a[Rows];
        UNROLL for (int r = 0; r < Rows; ++r) a[r] = p.a + (me.m_0 + row + r) * p.a_row + me.k_0;
        sum_up<Real, Rows, Blocks>(sums, right, me.k, [&a](int r, int64_t i) { return a[r] + i; });
      }
      UNROLL for (int v = 0; v < Blocks; ++v) {
        const int64_t column = (block + v) * L;
        const int some = static_cast<int>(smaller<int64_t>(L, me.n - column));
        UNROLL for (int r = 0; r < Rows; ++r) {
          Real* c = p.c + (me.m_0 + row + r) * p.N + me.n_0 + column;
          Vec<Real> value = sums[r][v];
          if (me.k_0 > 0) value = load_first(c, some) + value;
          else if (p.bias) value = value + load_first(p.bias + me.n_0 + column, some);
          store_first(c, value, some);
        }
      }
    }
  };

  // The tiles of these rows and columns, numbered group of three blocks by group, and in it panel by panel.
  void multiply_all() const {
    const int64_t panels = ceil_div(m, max_rows), blocks = ceil_div(n, L);
    int64_t tile, end;
    for (of_mine(panels * ceil_div(blocks, 3), tile, end); tile < end; ++tile) {
      const int64_t row = tile % panels * max_rows, block = tile / panels * 3;
      const int64_t some = smaller<int64_t>(max_rows, m - row), rest = blocks - block;
      if (rest >= 3) for_tiles<max_rows>(some, Tile<3>{*this, row, block});
      else if (rest == 2) for_tiles<max_rows>(some, Tile<2>{*this, row, block});
      else for_tiles<max_rows>(some, Tile<1>{*this, row, block});
    }
  }

  template <class Work>
  bool each(const Work& work) {
    return worker.phase(pieces, [&](int one) {
      piece = one;
      work();
    });
  }

  void work() {
    // (Somebody has to write the sums of no terms, and the sums over a where b has no columns.)
    for (n_0 = 0; n_0 == 0 || n_0 < p.N; n_0 += product_columns) {
      n = smaller(product_columns, p.N - n_0);
      for (k_0 = 0; k_0 == 0 || k_0 < p.K; k_0 += product_terms) {
        k = smaller(product_terms, p.K - k_0);
        for (m_0 = 0; m_0 < p.M; m_0 += product_rows) {
          m = smaller(product_rows, p.M - m_0);
          if (p.packs_a || m_0 == 0) {
            const bool together = each([&] {
              if (m_0 == 0) pack_right();
              if (p.packs_a) pack_left();
            });
            if (!together) return;
          }
          if (!each([&] { multiply_all(); })) return;
        }
      }
    }
  }
};

template <class Real>
struct ProductJob {
  const Matrices<Real>& p;
  Real* scratch;
  Shared& shared;
  int pieces;

  static void work(void* self, int place, int) {
    const auto& job = *static_cast<const ProductJob*>(self);
    const int64_t right = smaller(job.p.K, product_terms) * padded(smaller(job.p.N, product_columns), lanes<Real>);
    ProductMember<Real>{job.p, job.scratch + right, job.scratch, {job.shared, place}, 0, job.pieces, 0, 0, 0, 0, 0, 0}.work();
  }
};

template <class Real>
void product(const Matrices<Real>& p, int threads, Real* scratch) {
  const int64_t most = smaller<int64_t>(threads, p.M * p.N * p.K / 200000);
  const int team = static_cast<int>(most < 1 ? 1 : most);
  Shared shared(team, team);
  ProductJob<Real> job{p, scratch, shared, pieces_of(team, p.M * p.N * smaller(p.K, product_terms) / 100000)};
  run_team(team, ProductJob<Real>::work, &job);
}
