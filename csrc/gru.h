// The recurrence of a gated recurrent unit on a CPU: the only header that a caller needs.
//
// No framework, no exceptions across this line, no global state but the thread pool and the chosen instruction set.
// Nothing is checked here: shapes, dtypes and bounds are the caller's duty (Python's, src/tidegate/ops/gru).
//
//     r_t = σ(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
//     z_t = σ(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
//     n_t = tanh(W_in x_t + b_in + r_t ⊙ (W_hn h_(t-1) + b_hn))      Reset::after
//     n_t = tanh(W_in x_t + b_in + W_hn (r_t ⊙ h_(t-1)) + b_hn)      Reset::before
//     h_t = (1 - z_t) ⊙ n_t + z_t ⊙ h_(t-1)
//
// Shapes: T steps, B batch, I input features, H hidden units. Gates are stacked in the order r, z, n. Sizes and strides
// are 64-bit and count elements, not bytes. "Row" (t, b) is one step of one sequence. Its number is
//     t B + b                                          all sequences of one length, or padded (`lengths`)
//     batch_sizes[0] + ... + batch_sizes[t-1] + b      packed: step by step, the longest sequences first
//     starts[b] + t                                    end to end: one whole sequence after the other (`starts`)
//
// What may change the recurrence (`Extras`), with m the mask of recurrent dropout and k that of zoneout:
//     W_h h_(t-1) becomes W_h (m ⊙ h_(t-1)), and W_hn (r_t ⊙ h_(t-1)) becomes W_hn (r_t ⊙ m ⊙ h_(t-1))
//     z_t in the last line becomes z_t + k_t ⊙ (1 - z_t): where k is 1 a unit keeps its old state
//     before a step that is marked in `resets`, h_(t-1) becomes `fresh`; backwards in time a sequence begins anew at the
//         step before a marked one, so that both directions see the same pieces
//     layer norm: W_i(rz) x, W_in x, W_h(rz) h and W_hn h (or W_hn (r ⊙ h)) are each normalised over their 2H or H values,
//         (v - mean) / sqrt(variance + 1e-5), and scaled by g_ih or g_hh, before the biases are added
//
// Lifetime: every pointer is borrowed for the call; the caller owns all memory, inputs and results. The one exception
// is `Packed`, which owns a copy of the weights.
//
// Bits: the bits of a row's output depend on nothing but its own x, its h_0 and the weights: not on the other rows of
// the batch, on where a sequence is cut into calls, or on the number of threads. Gradients do not depend on the number
// of threads. Both hold for one instruction set. AVX2 and AVX-512 agree with each other as well, but for layer norm; the
// baseline of x86 has no fused multiply-add and rounds differently. Products in 8 bits have the same sums on all of them.
//
// Numbers below the smallest normal one are 0 in all kernels, whatever mode the caller's thread is in.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace tidegate {

enum class Reset : int { after = 0, before = 1 };

struct bf16 {  // bfloat16, the upper half of a float32
  uint16_t bits;
};

// What goes into products is stored as `Stored`: float, double, bf16 or int8_t. Sums, states and gates are a `Sum<Stored>`.
template <class Stored>
struct SumOf {
  using Type = Stored;
};
template <>
struct SumOf<bf16> {
  using Type = float;
};
template <>
struct SumOf<int8_t> {
  using Type = float;
};
template <class Stored>
using Sum = typename SumOf<Stored>::Type;

// What x is stored as: in 8 bits each row has a scale of its own, so there the kernel itself rounds it.
template <class Stored>
struct InputOf {
  using Type = Stored;
};
template <>
struct InputOf<int8_t> {
  using Type = float;
};
template <class Stored>
using Input = typename InputOf<Stored>::Type;

struct Sizes {
  int64_t T;                   // steps
  int64_t B;                   // batch
  int64_t I;                   // input features
  int64_t H;                   // hidden units
  const int64_t* batch_sizes;  // [T], never growing: step t has the first batch_sizes[t] rows; null: not packed
  const int64_t* lengths;      // [B], each 0 ... T, in any order; null: all have T steps, or batch_sizes tells. Not both
  const int64_t* starts;       // [B], with lengths: the sequences lie end to end; null: they lie padded
  Reset reset;
  bool norm;                   // layer norm
  int threads;                 // at most so many; small calls take fewer
};

// What one direction of one layer was trained to: borrowed, row-major.
template <class Real>
struct Weights {
  const Real* w_ih;  // [3H, I], rows w_ih_row apart
  const Real* w_hh;  // [3H, H], rows w_hh_row apart
  const Real* b_ih;  // [3H] or null
  const Real* b_hh;  // [3H] or null
  const Real* g_ih;  // [3H], layer norm's gains; null without it
  const Real* g_hh;  // [3H]
  int64_t w_ih_row, w_hh_row;
};

// The weights of one direction of one layer, rounded to `Stored` and copied into the order in which the forward kernel of one
// instruction set reads them. Owns that copy. Make it once, use it in as many calls as the weights stay the same.
//     int8_t: row i of a matrix becomes w / s_i, rounded to nearest, with s_i = max|w| / 127
template <class Stored>
class Packed {
 public:
  Packed(const Weights<Sum<Stored>>&, int64_t I, int64_t H, Reset, bool norm, int threads);
  ~Packed();
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;

  Stored* memory;         // owned, like `biases`; their layout is the kernel's business
  Sum<Stored>* biases;    // and layer norm's gains
  const void* isa;        // the kernel table that packed it, and must run it
  mutable std::atomic<int64_t> turn{0};  // steps so far: even or odd, the end from which a lone row reads the weights
};

// What tells one content of memory from another: sums over all of it. Two contents have the same one by chance alone, and of
// those that differ in one place never. Starts as zeros; is comparable on one instruction set.
struct Digest {
  uint32_t words[128] = {};
};
void digest(const void* memory, int64_t bytes, Digest&);  // adds this memory

// A matrix of numbers of 4 or 8 bytes, row-major, and its lines: a value of every row and of every column, along diagonals, so that
// whoever writes to a whole row or column is seen. A column alone is its own lines.
struct Matrix {
  const void* at;
  int64_t rows, columns;
  int64_t value_bytes;

  int64_t bytes() const { return rows * columns * value_bytes; }
  int64_t lines() const { return rows > columns ? rows : columns; }
};
void copy_lines(const Matrix&, void* to);          // lines() values
bool lines_differ(const Matrix&, const void* then);  // from those that were copied

// What changes the recurrence of a direction; see above. All of it may be null or zero.
template <class Real>
struct Extras {
  const uint8_t* resets = nullptr;  // step t of sequence b is marked: resets[t resets_step + b resets_row] is not 0
  int64_t resets_step = 0, resets_row = 0;
  const Real* fresh = nullptr;      // [B, H], rows fresh_row apart: the state after a reset; null: zeros
  int64_t fresh_row = 0;
  const Real* mask = nullptr;       // [B, H] contiguous: m; null: ones
  const uint8_t* zone = nullptr;    // row number i at zone + i zone_row, H values 0 or 1: k; null: zone_rate everywhere
  int64_t zone_row = 0;
  Real zone_rate = 0;               // in [0, 1]
};

// One direction of one layer, forwards. In bf16 and int8_t what goes into a product is rounded, x and h_(t-1), and h_t itself is
// not. (int8_t: every row v of x, and of h_(t-1) in every step, to v / s with s = max|v| / 127.)
template <class Stored>
struct Forward {
  using Real = Sum<Stored>;
  const Input<Stored>* x;    // row (t, b) at x + t x_step + b x_row, I values side by side; packed: x + number x_row;
  int64_t x_step, x_row;     //     end to end: x + number x_row, and x_step = x_row
  const Packed<Stored>* weights;
  const Real* h_0;           // [B, H], rows h_0_row apart; null: zeros
  int64_t h_0_row;
  Real* output;              // row number i at output + i output_row, H values: every h_t. Padding is not written
  Stored* rounded;           // bf16: the same, rounded, instead of `output`, which is null; else null
  int64_t output_row;
  Real* h_n;                 // [B, H] contiguous: each sequence's last state; null where nobody asks
  Stored* saved;             // row number i at saved + i slots(norm) H: r, z, n, W_hn h + b_hn (Reset::before: of r ⊙ h),
                             //     H each, and with layer norm the six normalised vectors, of h and then of x; null in inference.
                             //     (bf16: 16 bits each; r, z and n in units of 1/65535, 1/65535 and 1/32767)
  Real* norms;               // [row numbers, 4], layer norm's 1 / sqrt(variance + 1e-5): of W_h(rz), W_hn, W_i(rz), W_in; null
                             //     where saved is null, or without layer norm
  bool reverse;              // from the last step to the first
  Extras<Real> extras;
};

inline int64_t slots(bool norm) { return norm ? 10 : 4; }

// One direction of one layer, backwards: what `Forward` left, and the gradients.
//     bf16: the gradients of the gates are rounded to it before they are multiplied.
template <class Stored>
struct Backward {
  using Real = Sum<Stored>;
  const Stored* x;           // as in Forward
  int64_t x_step, x_row;
  Weights<Real> weights;
  const Packed<Stored>* packed;  // these weights, where saved is null: then it is computed again, a chunk at a time; else null
  const Real* h_0;           // as in Forward
  int64_t h_0_row;
  const Stored* output;      // as Forward wrote it; bf16: `rounded`
  int64_t output_row;
  const Stored* saved;       // as Forward wrote it, or null
  const Real* norms;
  const Real* d_output;      // row (t, b) at d_output + t d_output_step + b d_output_row, as with x; null: zeros
  int64_t d_output_step, d_output_row;
  const Real* d_h_n;         // [B, H], rows d_h_n_row apart; null: zeros
  int64_t d_h_n_row;
  const Real* d_saved;       // gradients of r, z, n, W_hn h + b_hn for their own sake, laid out like saved with 4 H values a row;
                             //     null: zeros
  bool reverse;
  Extras<Real> extras;
  Real* d_x;                 // row number i at d_x + i I; null where nobody asks. Overwritten, like all that follow. Padding
                             //     is not written
  Real* d_h_0;               // [B, H] contiguous; null where nobody asks
  Real* d_fresh;             // [B, H] contiguous; null where nobody asks
  Real* d_w_ih;              // [3H, I] contiguous; null where nobody asks
  Real* d_w_hh;              // [3H, H] contiguous; null where nobody asks
  Real* d_b_ih;              // [3H] or null, as the three that follow
  Real* d_b_hh;
  Real* d_g_ih;
  Real* d_g_hh;
};

// Run `directions` (1 or 2) of one layer over the same x, side by side where there are threads. Both have the same
// sizes, and both have layer norm's gains or neither. Allocates its scratch once a call; throws std::bad_alloc before anything is written where memory is short.
template <class Stored>
void forward(const Sizes&, const Forward<Stored>* runs, int directions);
template <class Stored>  // but int8_t
void backward(const Sizes&, const Backward<Stored>* runs, int directions);

// y = W x + b for every row: what stands on a recurrence, by the same rule. The bits of a row of y depend on nothing but
// its own x and the weights.
template <class Real>
struct Affine {
  const Real* x;             // [rows, I], rows x_row apart
  int64_t x_row;
  const Real* w;             // [O, I] contiguous
  const Real* b;             // [O] or null
  Real* y;                   // [rows, O] contiguous
  int64_t rows, I, O;
};
template <class Real>
void affine(const Affine<Real>&, int threads);  // allocates nothing

// The same for training, where rows are many and a stream need not have their bits: as fast as a matrix product in blocks.
// Its bits, too, depend neither on the other rows nor on the number of threads, but they are others than those of `affine`.
template <class Real>
void affine_in_blocks(const Affine<Real>&, int threads);

// Backwards: d_x = d_y W, d_W = d_y^T x, d_b = the sum of d_y over the rows. The bits don't depend on the number of threads.
template <class Real>
struct AffineBackward {
  const Real* x;             // [rows, I] contiguous
  const Real* w;             // [O, I] contiguous
  const Real* d_y;           // [rows, O] contiguous
  Real* d_x;                 // [rows, I] contiguous; null where nobody asks. Overwritten, like all that follow
  Real* d_w;                 // [O, I] contiguous; null where nobody asks for it and for d_b
  Real* d_b;                 // [O]; null where nobody asks
  int64_t rows, I, O;
};
template <class Real>
void affine_backward(const AffineBackward<Real>&, int threads);

// y[i] = σ(x[i]) and tanh(x[i]) by the kernel's own approximation, for tests. Either result may be null.
// Error bound, every instruction set: 3 units in the last place of the exact value, float32 and float64, for all x
// whose exact value is a normal number; below it an absolute error of the smallest normal number.
template <class Real>
void activations(const Real* x, Real* sigmoid, Real* tanh, int64_t n);

// The instruction sets of this build that this processor has, best first: "avx512_amx", "avx512_bf16", "avx512", "avx2", "neon_bf16",
// "baseline". Those whose names end in amx or bf16 differ from the one without in bf16 alone.
const char* const* isa_names();  // null-terminated
const char* isa_name();          // the one in use: the best, or what TIDEGATE_ISA names in the environment
bool set_isa(const char* name);  // false and no change where the name is not in isa_names(). Not during a call

// Multiply-adds that `threads` cores reach in registers alone, in GFLOP/s: the ceiling that no kernel passes.
double peak_gflops(int threads, double seconds);

// Hand parallel regions to an OpenMP runtime that is already in the process (PyTorch's own), so that one pool of
// threads serves both. `parallel` is GOMP_parallel, `num_threads` and `thread_num` its omp_get_*. Null: our own pool.
using OmpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using OmpNumber = int (*)();
void use_openmp(OmpParallel parallel, OmpNumber num_threads, OmpNumber thread_num);

}  // namespace tidegate
