// The weights in the order in which the forward kernel reads them. Part of kernels.inl.

// Where the parts of packed weights lie. Units go in blocks of one vector; the last one is filled up with zeros.
//     x:   block, input feature, gate r z n, lane        h: block, unit, gate r z n, lane          Reset::after
//                                                        h: block, unit, gate r z, lane, and n's   Reset::before
//     bias_x: block, gate, lane: b_ir + b_hr, b_iz + b_hz, b_in     bias_hn: block, lane
//     gain_x, gain_h, with layer norm: block, gate, lane
template <class Real>
struct Layout {
  int64_t I, H, blocks;
  bool after, norm;
  Layout(int64_t I_, int64_t H_, Reset reset, bool norm_)
      : I(I_), H(H_), blocks(ceil_div(H_, lanes<Real>)), after(reset == Reset::after), norm(norm_) {}
  int64_t x_block() const { return I * 3 * lanes<Real>; }
  int64_t h_block() const { return H * (after ? 3 : 2) * lanes<Real>; }
  int64_t n_block() const { return H * lanes<Real>; }
  int64_t h_at() const { return blocks * x_block(); }
  int64_t n_at() const { return h_at() + blocks * h_block(); }
  int64_t bias_x_at() const { return n_at() + (after ? 0 : blocks * n_block()); }
  int64_t bias_hn_at() const { return bias_x_at() + blocks * 3 * lanes<Real>; }
  int64_t gain_x_at() const { return bias_hn_at() + blocks * lanes<Real>; }
  int64_t gain_h_at() const { return gain_x_at() + (norm ? blocks * 3 * lanes<Real> : 0); }
  int64_t size() const { return gain_h_at() + (norm ? blocks * 3 * lanes<Real> : 0); }
};

// to[(k Each + v) lanes + lane] = from[(v gate_step + lane) row + k], for n lanes; the others are zeros.
template <class Real>
inline void pack_block(Real* to, const Real* from, int64_t row, int64_t gate_step, int each, int n, int64_t K) {
  constexpr int L = lanes<Real>;
  constexpr int64_t some = 16;  // columns at a time, so that what is written stays in the nearest cache
  for (int64_t k0 = 0; k0 < K; k0 += some) {
    const int64_t k1 = smaller(k0 + some, K);
    for (int v = 0; v < each; ++v) {
      for (int lane = 0; lane < L; ++lane) {
        const Real* source = from + (v * gate_step + lane) * row;
        for (int64_t k = k0; k < k1; ++k) to[(k * each + v) * L + lane] = lane < n ? source[k] : Real(0);
      }
    }
  }
}

template <class Real>
struct PackJob {
  const Weights<Real>* weights;
  Layout<Real> layout;
  Real* to;

  static void work(void* self, int member, int members) { static_cast<const PackJob*>(self)->run(member, members); }

  void run(int member, int members) const {
    constexpr int L = lanes<Real>;
    const Weights<Real>& w = *weights;
    const Layout<Real>& at = layout;
    const int64_t H = at.H;
    for (int64_t block = at.blocks * member / members; block < at.blocks * (member + 1) / members; ++block) {
      const int64_t unit = block * L;
      const int n = static_cast<int>(smaller<int64_t>(L, H - unit));
      pack_block(to + block * at.x_block(), w.w_ih + unit * w.w_ih_row, w.w_ih_row, H, 3, n, at.I);
      pack_block(to + at.h_at() + block * at.h_block(), w.w_hh + unit * w.w_hh_row, w.w_hh_row, H, at.after ? 3 : 2, n,
                 H);
      if (!at.after) {
        pack_block(to + at.n_at() + block * at.n_block(), w.w_hh + (2 * H + unit) * w.w_hh_row, w.w_hh_row, H, 1, n, H);
      }
      for (int lane = 0; lane < L; ++lane) {
        Real* bias_x = to + at.bias_x_at() + block * 3 * L + lane;
        Real hn = 0;
        for (int gate = 0; gate < 3; ++gate) {
          const int64_t i = gate * H + unit + lane;
          const auto value = [&](const Real* from) { return lane < n && from ? from[i] : Real(0); };
          const Real of_x = value(w.b_ih), of_h = value(w.b_hh);
          const bool apart = gate == 2;  // r scales this one, and a trace shows it
          bias_x[gate * L] = apart ? of_x : of_x + of_h;
          if (apart) hn = of_h;
          if (at.norm) {
            to[at.gain_x_at() + (block * 3 + gate) * L + lane] = value(w.g_ih);
            to[at.gain_h_at() + (block * 3 + gate) * L + lane] = value(w.g_hh);
          }
        }
        to[at.bias_hn_at() + block * L + lane] = hn;
      }
    }
  }
};

template <class Real>
int64_t packed_size(int64_t I, int64_t H, Reset reset, bool norm) {
  return Layout<Real>(I, H, reset, norm).size();
}

template <class Real>
void pack(const Weights<Real>& weights, int64_t I, int64_t H, Reset reset, bool norm, int threads, Real* to) {
  PackJob<Real> job{&weights, Layout<Real>(I, H, reset, norm), to};
  run_team(3 * H * (I + H) < 100000 ? 1 : threads, PackJob<Real>::work, &job);
}

// Adds memory to a digest. Of each lane the sum of its words, and the sum of these sums, so that places count; a word first
// takes its upper half into its lower one, as the low bits of a round number are all 0.
inline void digest(const void* memory, int64_t bytes, Digest& d) {
  typedef uint32_t Words __attribute__((vector_size(vector_bytes)));
  constexpr int n = 4;
  static_assert(sizeof(d.words) >= 2 * n * sizeof(Words), "the sums of every instruction set have room");
  const unsigned char* from = static_cast<const unsigned char*>(memory);
  Words sum[n], sums[n];
  __builtin_memcpy(sum, d.words, sizeof sum);
  __builtin_memcpy(sums, d.words + sizeof sum / 4, sizeof sums);
  constexpr int64_t step = n * sizeof(Words);
  for (; bytes >= step; bytes -= step, from += step) {
    UNROLL for (int k = 0; k < n; ++k) {
      Words v;
      __builtin_memcpy(&v, from + k * sizeof v, sizeof v);
      sum[k] += v ^ (v >> 16);
      sums[k] += sum[k];
    }
  }
  if (bytes > 0) {
    Words rest[n] = {};
    __builtin_memcpy(rest, from, static_cast<size_t>(bytes));
    UNROLL for (int k = 0; k < n; ++k) {
      sum[k] += rest[k] ^ (rest[k] >> 16);
      sums[k] += sum[k];
    }
  }
  __builtin_memcpy(d.words, sum, sizeof sum);
  __builtin_memcpy(d.words + sizeof sum / 4, sums, sizeof sums);
}
