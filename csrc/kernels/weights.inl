// The weights in the order in which the forward kernel reads them. Part of kernels.inl.

// Where the parts of packed weights lie. Units go in blocks of one vector; the last one is filled up with zeros. `terms` are as
// many input features or units as are multiplied at a time (`Terms`).
//     x:   block, features by terms, gate r z n, lane, term      h: block, units by terms, gate r z n, lane, term      Reset::after
//                                                                h: ... gate r z ..., and n's                          Reset::before
// and among the biases
//     bias_x: block, gate, lane: b_ir + b_hr, b_iz + b_hz, b_in     bias_hn: block, lane
//     gain_x, gain_h, with layer norm: block, gate, lane
template <class Stored>
struct Layout {
  static constexpr int L = lanes<Stored>, each = Terms<Stored>::each;
  int64_t I, H, blocks;
  bool after, norm;
  Layout(int64_t I_, int64_t H_, Reset reset, bool norm_)
      : I(I_), H(H_), blocks(ceil_div(H_, L)), after(reset == Reset::after), norm(norm_) {}
  static int64_t block(int64_t terms, int gates) { return block_header<Stored>(gates) + groups<Stored>(terms) * each * gates * L; }
  int64_t x_block() const { return block(I, 3); }
  int64_t h_block() const { return block(H, after ? 3 : 2); }
  int64_t n_block() const { return block(H, 1); }
  int64_t h_at() const { return blocks * x_block(); }
  int64_t n_at() const { return h_at() + blocks * h_block(); }
  int64_t size() const { return n_at() + (after ? 0 : blocks * n_block()); }
  int64_t bias_x_at() const { return 0; }
  int64_t bias_hn_at() const { return blocks * 3 * L; }
  int64_t gain_x_at() const { return blocks * 4 * L; }
  int64_t gain_h_at() const { return blocks * 7 * L; }
  int64_t biases_size() const { return blocks * (norm ? 10 : 4) * L; }
};

// to[((k / terms) Each + v) lanes terms + lane terms + k % terms] = from[(v gate_step + lane) row + k], for n lanes; the others,
// and terms beyond K, are zeros.
template <class Stored>
inline void pack_block(Stored* to, const Sum<Stored>* from, int64_t row, int64_t gate_step, int gates, int n, int64_t K) {
  constexpr int L = lanes<Stored>, each = Terms<Stored>::each;
  constexpr int64_t some = 16;  // columns at a time, so that what is written stays in the nearest cache
  float scales[3 * L];
  if constexpr (in_8_bits<Stored>) {
    for (int v = 0; v < gates; ++v) {
      for (int lane = 0; lane < L; ++lane) {
        float scale = 0;
        int32_t sum = 0;
        const float* source = from + (v * gate_step + lane) * row;
        if (lane < n) {
          scale = scale_of(source, K);
          for (int64_t k = 0; k < K; ++k) sum += in_scale(source[k], scale);
        }
        scales[v * L + lane] = scale;
        __builtin_memcpy(to + (v * L + lane) * 4, &scale, 4);
        __builtin_memcpy(to + ((gates + v) * L + lane) * 4, &sum, 4);
      }
    }
    to += block_header<Stored>(gates);
  }
  const int64_t end = groups<Stored>(K) * each;
  for (int64_t k0 = 0; k0 < end; k0 += some) {
    const int64_t k1 = smaller(k0 + some, end);
    for (int v = 0; v < gates; ++v) {
      for (int lane = 0; lane < L; ++lane) {
        const Sum<Stored>* source = from + (v * gate_step + lane) * row;
        for (int64_t k = k0; k < k1; ++k) {
          const Sum<Stored> value = lane < n && k < K ? source[k] : 0;
          Stored& place = to[((k / each) * gates + v) * L * each + lane * each + k % each];
          if constexpr (in_8_bits<Stored>) place = static_cast<int8_t>(in_scale(value, scales[v * L + lane]));
          else place = rounded<Stored>(value);
        }
      }
    }
  }
}

template <class Stored>
struct PackJob {
  using Real = Sum<Stored>;
  const Weights<Real>* weights;
  Layout<Stored> layout;
  Stored* to;
  Real* biases;

  static void work(void* self, int member, int members) { static_cast<const PackJob*>(self)->run(member, members); }

  void run(int member, int members) const {
    constexpr int L = lanes<Stored>;
    const Weights<Real>& w = *weights;
    const Layout<Stored>& at = layout;
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
        Real* bias_x = biases + at.bias_x_at() + block * 3 * L + lane;
        Real hn = 0;
        for (int gate = 0; gate < 3; ++gate) {
          const int64_t i = gate * H + unit + lane;
          const auto value = [&](const Real* from) { return lane < n && from ? from[i] : Real(0); };
          const Real of_x = value(w.b_ih), of_h = value(w.b_hh);
          const bool apart = gate == 2;  // r scales this one, and a trace shows it
          bias_x[gate * L] = apart ? of_x : of_x + of_h;
          if (apart) hn = of_h;
          if (at.norm) {
            biases[at.gain_x_at() + (block * 3 + gate) * L + lane] = value(w.g_ih);
            biases[at.gain_h_at() + (block * 3 + gate) * L + lane] = value(w.g_hh);
          }
        }
        biases[at.bias_hn_at() + block * L + lane] = hn;
      }
    }
  }
};

template <class Stored>
int64_t packed_size(int64_t I, int64_t H, Reset reset, bool norm) {
  return Layout<Stored>(I, H, reset, norm).size();
}
template <class Stored>
int64_t biases_size(int64_t H, bool norm) {
  return Layout<Stored>(0, H, Reset::after, norm).biases_size();
}

template <class Stored>
void pack(const Weights<Sum<Stored>>& weights, int64_t I, int64_t H, Reset reset, bool norm, int threads, Stored* to,
          Sum<Stored>* biases) {
  PackJob<Stored> job{&weights, Layout<Stored>(I, H, reset, norm), to, biases};
  const int team = 3 * H * (I + H) < 100000 ? 1 : threads;
  run_pieces(team, pieces_of(team, job.layout.blocks), PackJob<Stored>::work, &job);
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
