// What each instruction set offers: the same functions, compiled once for each.

#pragma once

#include "gru.h"

namespace tidegate {

// Which rows there are, worked out from batch_sizes or lengths: T and batch_sizes of `Sizes` are those of the plan, and
// so is b, the place of a sequence among those sorted by length. Null pointers: nothing to look up.
struct Plan {
  const int64_t* offsets;  // [T], the sums of the batch_sizes before each step
  const int64_t* order;    // [B], which sequence the caller's is at place b
  const int64_t* origin;   // [B], the number of the first row of the sequence at place b; row (t, b) is origin[b] + t row_step
  int64_t row_step;
  const int64_t* numbers;  // [rows], the number of each row, in the order of offsets[t] + b
  int64_t rows;            // how many there are, in all steps
};

// c = a b (+ bias), with a [M, K] and b [K, N] given by how far their rows and columns lie apart, one of which is 1.
template <class Real>
struct Matrices {
  const Real *a, *b, *bias;  // bias [N] or null
  int64_t a_row, a_column, b_row, b_column;
  Real *c, *a_sums;  // c [M, N] contiguous; a_sums [M]: the sums over each row of a, or null
  int64_t M, N, K;
  bool packs_a;      // a_row is 1; only then there may be a_sums. Else a_column is 1
};

// The recurrence. Scratch is counted in sums, `Sum<Stored>`.
template <class Stored>
struct RecurrenceOf {
  using Real = Sum<Stored>;
  int64_t (*packed_size)(int64_t I, int64_t H, Reset, bool norm);  // values of memory
  int64_t (*biases_size)(int64_t H, bool norm);                    // values of biases
  void (*pack)(const Weights<Real>&, int64_t I, int64_t H, Reset, bool norm, int threads, Stored* to, Real* biases);
  int64_t (*forward_scratch)(const Sizes&);  // for each thread
  int (*forward_threads)(const Sizes&, const Plan&, int directions);
  void (*forward)(const Sizes&, const Plan&, const Forward<Stored>*, int directions, int threads, Real* scratch,
                  int64_t scratch_each);
  int64_t (*backward_scratch)(const Sizes&, const Backward<Stored>*, int directions);  // for each direction
  int64_t (*backward_own_scratch)(const Sizes&, bool again);  // for each thread; again: nothing was saved
  int (*backward_threads)(const Sizes&, const Plan&, int directions);
  void (*backward)(const Sizes&, const Plan&, const Backward<Stored>*, int directions, int threads, Real* scratch,
                   int64_t scratch_each, Real* own, int64_t own_each);
};

template <class Real>
struct KernelsOf : RecurrenceOf<Real> {
  void (*activations)(const Real*, Real*, Real*, int64_t);
  void (*affine)(const Affine<Real>&, int threads);
  int64_t (*product_scratch)(int64_t M, int64_t N, int64_t K);  // values
  void (*product)(const Matrices<Real>&, int threads, Real* scratch);
};

struct Kernels {
  KernelsOf<float> f32;
  KernelsOf<double> f64;
  RecurrenceOf<int8_t> i8;
  double (*burn)(int64_t rounds, float* out);
  void (*digest)(const void*, int64_t bytes, Digest&);
};
using KernelsOfBf16 = RecurrenceOf<bf16>;

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;
extern const KernelsOfBf16 bf16_of_avx512_amx, bf16_of_avx512_bf16, bf16_of_avx512, bf16_of_avx2, bf16_of_neon_bf16, bf16_of_baseline;
// Only products in 8 bits are others there, and of these the bits are the same.
extern const RecurrenceOf<int8_t> i8_of_avx512_vnni;

}  // namespace tidegate
