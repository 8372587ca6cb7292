// What an update of a training does beside the recurrence: a batch cut out of flat arrays, the encoder, dropout, the loss with its
// gradient, and Adam. float32 throughout. Knows no framework; what is computed of what is said at each function.
//
// The bits of every result are the same on any number of threads: rows are computed alone, and sums run over blocks whose size
// depends on nothing, in their order.
//
// Dropout draws nothing: whether a value is kept is a hash of a key, its row and its place in the row, so that backward needs no
// mask in memory, and threads may take any rows.

#pragma once

#include <cstdint>

namespace tidegate {

// T steps of B sequences out of N steps that lie one after the other.
struct Cut {
  const int64_t *starts, *lengths;    // [B], lengths >= 1: the steps starts[b] ... starts[b] + lengths[b] - 1
  const int64_t* limits;              // [B]: targets come from before this step
  const int64_t* owners;              // [B]: whose target to take where there is one for a sequence; null: one for each step
  int64_t T, B, F, C;
  const float* numbers;               // [N, F]
  const int64_t* codes;               // [N, C]
  const char* y;                      // [N, y_bytes], or [S, y_bytes] with owners
  int64_t y_bytes;
  bool of_classes;                    // y is int64, one a target; else float32
  int64_t missing;                    // what a target of classes is where there is none; of others it is NaN
  const int64_t* stretch;             // [N]: no target lies across a change of it; null: none changes
  int64_t horizon;                    // 0: the target of the same step; k: the targets of the next k
  float* numbers_to;                  // [T, B, F]; padding repeats a sequence's last step, as in what follows
  int64_t* codes_to;                  // [T, B, C]
  char* y_to;                         // [T, B, max(horizon, 1), y_bytes], or [B, y_bytes] with owners
};
void cut(const Cut&);

// The rows of y [rows, per_row] that have a target, in order, into `to` [rows]; how many these are, and how many targets.
struct Scored {
  int64_t rows, targets;
};
Scored scored_rows(const int64_t* y, int64_t rows, int64_t per_row, int64_t* to);
Scored scored_rows(const float* y, int64_t rows, int64_t per_row, int64_t* to);

// What the core reads: numbers, then the vector of each code, side by side, with dropout on the vectors. A code is read as 0
// with the probability that its rate says.
struct Embedded {
  const float* weight;                // [V, width]
  const float* rate;                  // [V]; null: no code is read as 0
  float* d_weight;                    // [V, width], 0 except in rows of an earlier batch; null where nobody asks
  int64_t width;
};
struct Encoder {
  const float* numbers;               // [rows, F]
  const int64_t* codes;               // [rows, columns]
  const Embedded* of;                 // [columns]
  int64_t rows, F, columns, width;    // width: of all side by side
  double dropout;                     // in [0, 1)
  uint64_t key;
};
// read [rows, columns]: the codes that were read
void encode(const Encoder&, float* to, int64_t* read, int threads);
// d [rows, width]. before [before_rows, columns]: the codes of the batch before, whose rows of d_weight are made 0 first; or null.
void encode_backward(const Encoder&, const float* d, const int64_t* read, const int64_t* before, int64_t before_rows);

// Some rows of a matrix under dropout.
struct Dropped {
  const int64_t* rows;                // [count]: which rows of x; null: row i is row i
  int64_t count, width;
  double rate;                        // in [0, 1)
  uint64_t key;
};
void drop(const Dropped&, const float* x, float* y, int threads);                          // y [count, width]
void drop_backward(const Dropped&, const float* d_y, float* d_x, int64_t all, int threads);  // d_x [all, width], the others 0

// The loss of the targets that there are, summed, and its gradient times `scale` in place of the scores.
enum class Loss : int { classes = 0, labels = 1, numbers = 2 };
struct Scores {
  Loss kind;
  float* scores;                      // [count, K, W]
  const int64_t* rows;                // [count]: which rows of y and numbers
  const void* y;                      // classes: int64 [all, K]; else float32 [all, K, W]
  const float* class_weights;         // [W] or null
  const float* numbers;               // [all, F] and residual [W]: score w counts from numbers[residual[w]]; null: from 0
  const int64_t* residual;
  int64_t count, K, W, F;
  double scale;
};
double loss(const Scores&, double* of_rows, int threads);  // of_rows [count]: scratch

// Adam, or with weight_decay AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019), as torch.optim has them:
//
//     g *= min(1, clip / (|g| + 1e-6))                |g| over all tensors; clip 0: g stays
//     p *= 1 - lr weight_decay
//     m = beta1 m + (1 - beta1) g      v = beta2 v + (1 - beta2) g g
//     p -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
struct Weights32 {
  float *p, *m, *v;                   // [n]
  const float* g;                     // null: nothing changes
  int64_t n;
  double step;                        // this update's number, from 1
};
struct Adam {
  double lr, beta1, beta2, eps, weight_decay, clip;
};
int64_t adam_blocks(const Weights32*, int64_t count);
void adam(const Adam&, const Weights32*, int64_t count, double* of_blocks, int threads);  // of_blocks [adam_blocks]: scratch

}  // namespace tidegate
