/* The start of a program on a bare Cortex-M, for QEMU's mps2 boards: newlib's _start does the rest, through semihosting. */
#include <stdint.h>

extern uint32_t stack_top;
void _start(void);

void start(void) {
#if defined(__ARM_FP)
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: the floating-point unit is off after a reset */
  __asm__ volatile("dsb\n isb");
#endif
  _start();
}

void fault(void) { /* ends the emulator with an error: SYS_EXIT, ADP_Stopped_RunTimeErrorUnknown */
  __asm__ volatile("mov r0, #0x18\n ldr r1, =0x20023\n bkpt #0xAB");
  for (;;) {
  }
}

/* What the processor reads first: the top of the stack, where to start, and where its faults go. */
__attribute__((section(".vectors"), used)) const struct {
  uint32_t *stack;
  void (*start)(void);
  void (*faults[14])(void);
} vectors = {
    &stack_top,
    start,
    {fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault},
};
