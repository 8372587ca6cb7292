#define TIDEGATE_ISA avx2
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_avx2 = {"avx2", avx2::kernels_of<float>, avx2::kernels_of<double>, avx2::burn,
                               avx2::digest};
}
