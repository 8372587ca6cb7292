// What bfloat16 and 8 bits have instructions for. The rest is isa_avx512.cpp's.
#define TIDEGATE_ISA avx512_bf16
#include "kernels.inl"

namespace tidegate {
const KernelsOfBf16 bf16_of_avx512_bf16 = avx512_bf16::recurrence_of<bf16>;
const RecurrenceOf<int8_t> i8_of_avx512_vnni = avx512_bf16::recurrence_of<int8_t>;
}
