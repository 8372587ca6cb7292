// bfloat16 by the matrix unit of newer Intel processors. The rest is isa_avx512.cpp's.
#define TIDEGATE_ISA avx512_amx
#include "kernels.inl"

namespace tidegate {
const KernelsOfBf16 bf16_of_avx512_amx = avx512_amx::recurrence_of<bf16>;
}
