#define TIDEGATE_ISA baseline
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_baseline = {baseline::kernels_of<float>, baseline::kernels_of<double>, baseline::recurrence_of<int8_t>, baseline::burn, baseline::digest};
const KernelsOfBf16 bf16_of_baseline = baseline::recurrence_of<bf16>;
}
