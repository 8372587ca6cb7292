#define TIDEGATE_ISA baseline
#include "kernels.inl"

namespace tidegate {
const Kernels kernels_baseline = {"baseline", baseline::kernels_of<float>, baseline::kernels_of<double>, baseline::burn,
                               baseline::digest};
}
