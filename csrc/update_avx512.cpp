#define TIDEGATE_ISA avx512
#include "update.inl"

namespace tidegate {
const UpdateKernels update_avx512 = avx512::update_kernels;
}
