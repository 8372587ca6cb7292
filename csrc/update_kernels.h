// What each instruction set offers of update.h.

#pragma once

#include "update.h"

namespace tidegate {

struct UpdateKernels {
  void (*encode)(const Encoder&, float* to, int64_t* read, int threads);
  void (*encode_backward)(const Encoder&, const float* d, const int64_t* read, const int64_t* before, int64_t before_rows);
  void (*drop)(const Dropped&, const float* from, float* to, bool backward, int threads);
  void (*loss)(const Scores&, double* of_rows, int threads);
  int64_t (*adam_blocks)(const Weights32*, int64_t count);
  void (*adam)(const Adam&, const Weights32*, int64_t count, double* of_blocks, int threads);
};

extern const UpdateKernels update_avx512, update_avx2, update_baseline;

}  // namespace tidegate
