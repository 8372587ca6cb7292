/* How far the exp, sigmoid and tanh of an exported header are from the truth, over the whole range of floats.
 *
 *     cc -O2 -DHEADER='"m.h"' -DNAME(x)=m_##x -DTIDEGATE_NO_MATH activations.c -lm && ./a.out STRIDE
 *
 * Takes every STRIDE-th pattern of bits that is a number, and prints for each function the largest error in units in the
 * last place (where the truth is a normal float), and the largest one below that, in units of 1e-38.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include HEADER

/* BLOCK at a time, so that the loops over floats are the ones that a compiler vectorises. */
#define BLOCK 1024

static double ulps[3], tiny[3];

static void judge(int which, float got, double truth) {
  const double error = fabs((double)got - truth), size = fabs(truth);
  if (size >= 1.1754943508222875e-38) {
    int exponent;
    frexp(size, &exponent);
    if (!(error / ldexp(1.0, exponent - 24) <= ulps[which])) ulps[which] = error / ldexp(1.0, exponent - 24);
  } else if (!(error * 1e38 <= tiny[which])) {
    tiny[which] = error * 1e38;
  }
}

int main(int count, char **arguments) {
  const uint64_t stride = count > 1 ? strtoull(arguments[1], 0, 10) : 4093;
  uint64_t bits = 0;
  static float x[BLOCK], e[BLOCK], s[BLOCK], t[BLOCK];
  while (bits < (uint64_t)1 << 32) {
    int n = 0, i;
    for (; n < BLOCK && bits < (uint64_t)1 << 32; bits += stride) {
      const float value = NAME(float_of)((uint32_t)bits);
      if (value == value) x[n++] = value;
    }
    for (i = 0; i < n; ++i) e[i] = NAME(exp)(x[i]);
    for (i = 0; i < n; ++i) s[i] = NAME(sigmoid)(x[i]);
    for (i = 0; i < n; ++i) t[i] = NAME(tanh)(x[i]);
    for (i = 0; i < n; ++i) {
      const double v = (double)x[i];
      if (fabs(v) <= 87.0) judge(0, e[i], exp(v));
      if (fabs(v) <= 87.0) judge(1, s[i], 1.0 / (1.0 + exp(-v)));
      else if (!(fabs((double)s[i] - 1.0 / (1.0 + exp(-v))) * 1e38 <= tiny[1])) tiny[1] = fabs((double)s[i] - 1.0 / (1.0 + exp(-v))) * 1e38;
      judge(2, t[i], tanh(v));
    }
  }
  printf("exp %.3f %.3f\nsigmoid %.3f %.3f\ntanh %.3f %.3f\n", ulps[0], tiny[0], ulps[1], tiny[1], ulps[2], tiny[2]);
  return 0;
}
