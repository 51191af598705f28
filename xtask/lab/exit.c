/* Ends a virtual machine with an exit code: writes it to I/O port 0xf4.
 * QEMU's isa-debug-exit and our own VMM both listen there. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>

#define EXIT_PORT 0xf4

int main(int argc, char **argv)
{
	int code = argc > 1 ? atoi(argv[1]) : 0;

	if (ioperm(EXIT_PORT, 1, 1)) {
		perror("ioperm");
		return 1;
	}
	outb(code, EXIT_PORT);
	return 0;
}
