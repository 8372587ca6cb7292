// bfloat16 by 64-bit ARM's dot products. The rest is isa_baseline.cpp's.
#define TIDEGATE_ISA neon_bf16
#include "kernels.inl"

namespace tidegate {
const KernelsOfBf16 bf16_of_neon_bf16 = neon_bf16::recurrence_of<bf16>;
}
