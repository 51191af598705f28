/* Sends a file over TCP so many times; takes what comes and writes it to its output; or takes what comes and compares each byte of
 * it with a file, so many times. The tools of the RAM disk move a kibibyte at a time, and here it is system calls that cost.
 *
 *     lab-pump send ADDRESS PORT FILE TIMES
 *     lab-pump take PORT
 *     lab-pump compare PORT FILE TIMES
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[1 << 20];

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static struct sockaddr_in address_of(const char *address, const char *port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };

	if (inet_pton(AF_INET, address, &to.sin_addr) != 1)
		fail(address);
	return to;
}

static void send_file(const char *address, const char *port, const char *file, int times)
{
	struct sockaddr_in to = address_of(address, port);
	int peer = socket(AF_INET, SOCK_STREAM, 0);
	int data = open(file, O_RDONLY), tries = 100;
	struct stat about;

	if (data < 0 || fstat(data, &about))
		fail(file);
	/* The other end may not listen yet. */
	while (connect(peer, (struct sockaddr *)&to, sizeof(to)))
		if (errno != ECONNREFUSED || --tries == 0 || usleep(100000))
			fail("connect");
	while (times-- > 0) {
		off_t at = 0;

		while (at < about.st_size)
			if (sendfile(peer, data, &at, about.st_size - at) <= 0)
				fail("sendfile");
	}
	/* The other end has all of it once it ends in turn. */
	shutdown(peer, SHUT_WR);
	if (read(peer, buffer, 1) != 0)
		fail("the end");
}

/* Waits for the one who sends. */
static int sender(const char *port)
{
	struct sockaddr_in here = address_of("0.0.0.0", port);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0), peer;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 1))
		fail("listen");
	peer = accept(listener, NULL, NULL);
	if (peer < 0)
		fail("accept");
	return peer;
}

static void take(const char *port)
{
	int peer = sender(port);
	ssize_t len, done, written;

	while ((len = read(peer, buffer, sizeof(buffer))) > 0)
		for (done = 0; done < len; done += written)
			if ((written = write(STDOUT_FILENO, buffer + done, len - done)) <= 0)
				fail("write");
	if (len < 0)
		fail("read");
}

static void compare(const char *port, const char *file, int times)
{
	int data = open(file, O_RDONLY), peer;
	struct stat about;
	const char *wanted;
	long long place = 0;
	ssize_t len;

	if (data < 0 || fstat(data, &about))
		fail(file);
	wanted = mmap(NULL, about.st_size, PROT_READ, MAP_SHARED, data, 0);
	if (wanted == MAP_FAILED)
		fail(file);
	peer = sender(port);
	while ((len = read(peer, buffer, sizeof(buffer))) > 0) {
		ssize_t done = 0;

		while (done < len) {
			off_t at = place % about.st_size;
			ssize_t part = len - done < about.st_size - at ? len - done : about.st_size - at;

			if (memcmp(buffer + done, wanted + at, part)) {
				fprintf(stderr, "lab-pump: another byte within %zd from %lld\n", part, place);
				exit(1);
			}
			done += part;
			place += part;
		}
	}
	if (len < 0)
		fail("read");
	if (place != (long long)about.st_size * times) {
		fprintf(stderr, "lab-pump: %lld bytes came\n", place);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], "send"))
		send_file(argv[2], argv[3], argv[4], atoi(argv[5]));
	else if (argc == 3 && !strcmp(argv[1], "take"))
		take(argv[2]);
	else if (argc == 5 && !strcmp(argv[1], "compare"))
		compare(argv[2], argv[3], atoi(argv[4]));
	else
		return 2;
	return 0;
}
