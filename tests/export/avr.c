/* A header's self-test on an AVR: what it prints goes to the serial line, and the processor sleeps when it is done, at which
 * simavr ends. */
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdio.h>

#define main self_test
#include SELF_TEST
#undef main

static int put(char letter, FILE *to) {
  (void)to;
  while (!(UCSR0A & (1 << UDRE0))) {
  }
  UDR0 = letter;
  return 0;
}

static FILE serial = FDEV_SETUP_STREAM(put, NULL, _FDEV_SETUP_WRITE);

int main(void) {
  UCSR0B = 1 << TXEN0;
  stdout = &serial;
  printf("int has %d bits\n", (int)(8 * sizeof(int)));
  printf("status %d\n", self_test());
  cli();
  sleep_enable();
  sleep_cpu();
  return 0;
}
