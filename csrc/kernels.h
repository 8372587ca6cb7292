// What each instruction set offers: the same functions, compiled once for each.

#pragma once

#include "gru.h"

namespace tidegate {

template <class Real>
struct KernelsOf {
  int64_t (*packed_size)(int64_t I, int64_t H, Reset);
  void (*pack)(const Weights<Real>&, int64_t I, int64_t H, Reset, int threads, Real* to);
  int64_t (*forward_scratch)(const Sizes&);  // values, for each thread
  int (*forward_threads)(const Sizes&, int directions);
  void (*forward)(const Sizes&, const Forward<Real>*, int directions, int threads, const int64_t* offsets,
                  Real* scratch, int64_t scratch_each);
  int64_t (*backward_scratch)(const Sizes&, const Backward<Real>*, int directions);  // values, for each direction
  int (*backward_threads)(const Sizes&, int directions);
  void (*backward)(const Sizes&, const Backward<Real>*, int directions, int threads, const int64_t* offsets,
                   Real* scratch, int64_t scratch_each);
  void (*activations)(const Real*, Real*, Real*, int64_t);
};

struct Kernels {
  const char* name;
  KernelsOf<float> f32;
  KernelsOf<double> f64;
  double (*burn)(int64_t rounds, float* out);
};

extern const Kernels kernels_avx512, kernels_avx2, kernels_baseline;

}  // namespace tidegate
