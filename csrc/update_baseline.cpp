#define TIDEGATE_ISA baseline
#include "update.inl"

namespace tidegate {
const UpdateKernels update_baseline = baseline::update_kernels;
}
