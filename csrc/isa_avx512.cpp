#define TIDEGATE_ISA avx512
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_avx512 = {avx512::kernels_of<float>, avx512::kernels_of<double>, avx512::recurrence_of<int8_t>, avx512::burn, avx512::digest};
const KernelsOfBf16 bf16_of_avx512 = avx512::recurrence_of<bf16>;
}
