#define TIDEGATE_ISA avx2
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_avx2 = {avx2::kernels_of<float>, avx2::kernels_of<double>, avx2::recurrence_of<int8_t>, avx2::burn, avx2::digest};
const KernelsOfBf16 bf16_of_avx2 = avx2::recurrence_of<bf16>;
}
