#define TIDEGATE_ISA avx512
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_avx512 = {"avx512", avx512::kernels_of<float>, avx512::kernels_of<double>, avx512::burn,
                               avx512::digest};
}
