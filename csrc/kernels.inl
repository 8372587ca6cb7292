// The kernels, once, for the instruction set of vec.h. Compiled again for each set with TIDEGATE_ISA as its namespace.
// The parts in kernels/ lie inside that namespace, each standing on those before it. Nothing in them comes from the
// standard library's templates, so that no function of one set leaks into another.
//
// Every sum over inputs or units runs through `multiply`: one accumulator a result, in the order k = 0, 1, 2 ..., put
// by after the same number of terms. So a result's bits do not depend on the size of the tile that it was computed in,
// and with that not on the rest of the batch, on chunks, or on threads.

#include "gru.h"
#include "kernels.h"
#include "team.h"
#include "vec.h"

#define UNROLL _Pragma("GCC unroll 32")
// What follows a product is long: unrolled it would be most of the code. (Its sums lie in memory already.)
#define ONCE _Pragma("GCC unroll 1")
// A tile is a function by itself: inlined into what is around it, the addresses of its rows no longer stay in registers, and each of
// its products reads them anew.
#define TILE [[gnu::noinline]]

namespace tidegate {
namespace TIDEGATE_ISA {

#include "kernels/multiply.inl"
#include "kernels/rounding.inl"
#include "kernels/weights.inl"
#include "kernels/rows.inl"
#include "kernels/norm.inl"
#include "kernels/forward.inl"
#include "kernels/backward.inl"
#include "kernels/affine.inl"
#include "kernels/product.inl"

template <class Real>
void activations(const Real* x, Real* sigmoids, Real* tanhs, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes<Real>) {
    const int some = static_cast<int>(smaller<int64_t>(lanes<Real>, n - i));
    const Vec<Real> v = load_first(x + i, some);
    if (sigmoids) store_first(sigmoids + i, sigmoid<Real>(v), some);
    if (tanhs) store_first(tanhs + i, tanh<Real>(v), some);
  }
}

// Multiply-adds in registers alone, as many sums as the kernels keep; returns how many floating point operations.
double burn(int64_t rounds, float* out) {
  constexpr int n = max_rows * 3;
  Vec<float> sums[n];
  Vec<float> a = splat(1.0f), b = splat(1e-9f);
  UNROLL for (int i = 0; i < n; ++i) sums[i] = splat(static_cast<float>(i));
  for (int64_t k = 0; k < rounds; ++k) {
    asm volatile("" : "+m"(*out));  // keeps the loop, touches no register
    UNROLL for (int i = 0; i < n; ++i) sums[i] = fma(sums[i], a, b);
  }
  UNROLL for (int i = 0; i < n; ++i) out[0] += sums[i][0];
  return 2.0 * n * lanes<float> * static_cast<double>(rounds);
}

template <class Stored>
constexpr RecurrenceOf<Stored> recurrence_of = {
    packed_size<Stored>,      biases_size<Stored>,          pack<Stored>,     forward_scratch<Stored>, forward_threads, forward<Stored>,
    backward_scratch<Stored>, backward_own_scratch<Stored>, backward_threads, backward<Stored>,
};
template <>
constexpr RecurrenceOf<int8_t> recurrence_of<int8_t> = {
    packed_size<int8_t>, biases_size<int8_t>, pack<int8_t>, forward_scratch<int8_t>, forward_threads, forward<int8_t>,
    nullptr,             nullptr,             nullptr,      nullptr,
};

template <class Real>
constexpr KernelsOf<Real> kernels_of = {
    recurrence_of<Real>, activations<Real>, affine<Real>, product_scratch<Real>, product<Real>,
};

}  // namespace TIDEGATE_ISA
}  // namespace tidegate
