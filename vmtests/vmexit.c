// SPDX-License-Identifier: Apache-2.0
// Ends the virtual machine: a byte N written to QEMU's isa-debug-exit device makes QEMU exit with 2 * N + 1.
#include <stdlib.h>
#include <sys/io.h>

enum { kPort = 0xf4 };

int main(int argc, char** argv) {
  if (ioperm(kPort, 1, 1) != 0) return 1;
  outb((unsigned char)(argc > 1 ? atoi(argv[1]) : 0), kPort);
  return 1;  // not reached
}
