#define TIDEGATE_ISA avx2
#include "update.inl"

namespace tidegate {
const UpdateKernels update_avx2 = avx2::update_kernels;
}
