// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * How fast xctl reads events, beside libbpf's perf buffer: reader XCTL OBJECT RUNS [OPTION...]
 *
 * Run by turns: `xctl trace --json --events send OPTION...`, and a plain reader of libbpf's that prints a line of the same
 * fields with printf for each record. Both have the same programs, settings and ring size. A process sends 64 bytes at a
 * time over loopback, as fast as it can, then 300,000 times a second, both into a file in memory; then 1,000 times a second
 * into a pipe, for the latency from the kernel's time of the event to its line. Exits 1 beyond a budget.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/types.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "../../bpf-src/events.h"
#include "row.h"

#define MOST_RUNS 100
#define PAGES 64
#define FLOOD 1000000
#define PACED 600000
#define PACE 300000	/* events a second */
#define SLOW 3000
#define SLOW_PACE 1000
#define MOST_CPU_RATIO 0.5

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec time;

	if (clock_gettime(clock, &time))
		die("clock_gettime");
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* ---- The traffic: one connection over loopback. */

struct wire {
	int from, to;
	uint16_t port;
};

static struct wire connect_wire(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t size = sizeof(at);
	struct wire wire = { .from = socket(AF_INET, SOCK_STREAM, 0) };

	if (bind(listener, (void *)&at, size) || listen(listener, 1) || getsockname(listener, (void *)&at, &size) ||
	    connect(wire.from, (void *)&at, size))
		die("loopback");
	wire.to = accept(listener, NULL, NULL);
	wire.port = ntohs(at.sin_port);
	close(listener);
	return wire;
}

/* A process that reads all that comes. */
static pid_t start_receiver(struct wire wire)
{
	static char bytes[1 << 18];
	pid_t pid = fork();

	if (pid)
		return pid;
	close(wire.from);
	while (recv(wire.to, bytes, sizeof(bytes), 0) > 0)
		;
	_exit(0);
}

/* Send so many times, so often a second (0: as fast as possible), in a process of its own. Returns the seconds that it took. */
static double send_all(struct wire wire, int count, int pace)
{
	char bytes[64] = {};
	uint64_t begin = clock_ns(CLOCK_MONOTONIC);
	int status;
	pid_t pid = fork();

	if (!pid) {
		for (int i = 0; i < count; i++) {
			uint64_t due = pace ? begin + i * (1000000000ull / pace) : 0;

			if (pace > 10000) {
				while (clock_ns(CLOCK_MONOTONIC) < due)
					;
			} else if (pace) {
				struct timespec at = { due / 1000000000, due % 1000000000 };

				clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
			}
			if (send(wire.from, bytes, sizeof(bytes), 0) != sizeof(bytes))
				_exit(1);
		}
		_exit(0);
	}
	if (waitpid(pid, &status, 0) < 0 || status)
		die("the sender");
	return (clock_ns(CLOCK_MONOTONIC) - begin) / 1e9;
}

/* ---- The readers. */

/* The hooks that xctl attaches: its record `ready`. */
static char ready[1 << 16];

static bool is_attached(const char *program)
{
	char quoted[64];

	snprintf(quoted, sizeof(quoted), "\"program\":\"%s\"", program);
	return strstr(ready, quoted);
}

static volatile sig_atomic_t ended;
static uint64_t lost;

static void end(int signal __attribute__((unused)))
{
	ended = 1;
}

static void print(void *context __attribute__((unused)), int cpu __attribute__((unused)), void *data,
		  __u32 size __attribute__((unused)))
{
	const struct send_event *event = data;
	const struct owner *owner = &event->owner;
	char from[INET6_ADDRSTRLEN], to[INET6_ADDRSTRLEN];

	inet_ntop(AF_INET6, event->flow.saddr, from, sizeof(from));
	inet_ntop(AF_INET6, event->flow.daddr, to, sizeof(to));
	printf("{\"type\":\"send\",\"mono_ns\":%llu,\"bytes\":%llu,\"saddr\":\"%s\",\"sport\":%u,\"daddr\":\"%s\",\"dport\":%u,"
	       "\"netns\":%u,\"pid\":%u,\"comm\":\"%.16s\",\"tid\":%u,\"uid\":%u,\"cgroup\":%llu,\"owner\":%u,\"cpu\":%u}\n",
	       event->header.mono_ns, event->bytes, from, event->flow.sport, to, event->flow.dport, event->flow.netns,
	       owner->tgid, owner->comm, owner->tid, owner->uid, owner->cgroup, owner->how, event->header.cpu);
}

static void count_lost(void *context __attribute__((unused)), int cpu __attribute__((unused)), __u64 count)
{
	lost += count;
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, args) : 0;
}

/* libbpf's own reader, as its documentation shows it. */
static void libbpf(const char *path, uint16_t port)
{
	const char *max_sockets = strstr(ready, "\"max_sockets\":");
	struct perf_buffer *buffer;
	struct settings *settings;
	struct bpf_program *program;
	struct bpf_object *object;
	size_t size;

	libbpf_set_print(quiet);
	object = bpf_object__open_file(path, NULL);
	if (!object)
		die("open");
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, is_attached(bpf_program__name(program)));
	size = strtoul(max_sockets + strlen("\"max_sockets\":"), NULL, 10);
	bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "SOCKET_TO_PID"), size);
	settings = bpf_map__initial_value(bpf_object__find_map_by_name(object, ".rodata"), &size);
	settings->sends = 1;
	settings->ports[0] = port;
	settings->births_by_state = !!strstr(ready, "\"attach\":\"tracepoint\"");
	if (bpf_object__load(object))
		die("load");
	bpf_object__for_each_program(program, object)
		if (bpf_program__autoload(program) && !bpf_program__attach(program))
			die(bpf_program__name(program));
	buffer = perf_buffer__new(bpf_object__find_map_fd_by_name(object, "EVENTS"), PAGES, print, count_lost, NULL, NULL);
	if (!buffer)
		die("perf_buffer__new");
	signal(SIGTERM, end);
	printf("{\"type\":\"ready\"}\n");
	fflush(stdout);
	while (!ended) {
		if (perf_buffer__poll(buffer, 100) <= 0)
			fflush(stdout);
		/* A line that waits for the next one would be late. */
		else if (getenv("READER_FLUSH"))
			fflush(stdout);
	}
	perf_buffer__consume(buffer);
	printf("{\"type\":\"summary\",\"perf\":%llu}\n", (unsigned long long)lost);
	exit(0);
}

struct reader {
	const char *name;
	char **command;		/* xctl's; NULL: libbpf */
	const char *object;
};

/* Start a reader with this standard output, and wait for its first line. */
static pid_t start(const struct reader *reader, uint16_t port, int out, int in)
{
	char number[8], text[sizeof(ready)];
	size_t size = 0;
	pid_t pid = fork();

	if (!pid) {
		dup2(out, STDOUT_FILENO);
		if (!reader->command) {
			setvbuf(stdout, NULL, _IOFBF, 1 << 16);
			libbpf(reader->object, port);
		}
		for (int i = 0; reader->command[i]; i++)
			if (!strcmp(reader->command[i], "PORT")) {
				snprintf(number, sizeof(number), "%u", port);
				reader->command[i] = number;
			}
		execv(reader->command[0], reader->command);
		die(reader->command[0]);
	}
	for (int tries = 0; !memchr(text, '\n', size); tries++) {
		ssize_t got = out == in ? pread(in, text + size, sizeof(text) - 1 - size, size) : read(in, text + size, sizeof(text) - 1 - size);

		if (got < 0 || tries > 5000)
			die("no `ready`");
		size += got;
		usleep(got ? 0 : 1000);
	}
	text[size] = 0;
	if (reader->command)
		memcpy(ready, text, size + 1);
	usleep(100000); /* so that it has come to wait for records */
	return pid;
}

static void stop(pid_t pid)
{
	int status;

	kill(pid, SIGTERM);
	if (waitpid(pid, &status, 0) < 0 || status)
		die("a reader did not end well");
}

static off_t size_of(int file)
{
	struct stat info;

	if (fstat(file, &info))
		die("fstat");
	return info.st_size;
}

/* Wait until it has printed all that it will print. */
static void settle(int file)
{
	off_t before;

	do {
		before = size_of(file);
		usleep(300000);
	} while (size_of(file) != before);
}

/* The lines of events in a file from `begin` on, and the losses that its last line tells. */
static long count_lines(int file, size_t begin, long *told)
{
	size_t size = size_of(file);
	char *text = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0), *end = text + size, *summary;
	long lines = 0;

	if (text == MAP_FAILED)
		die("mmap");
	for (char *at = text + begin; (at = memmem(at, end - at, "\"type\":\"send\"", 13)); at++)
		lines++;
	summary = memrchr(text, '\n', size - 1);
	summary = summary ? memmem(summary, end - summary, "\"perf\":", 7) : NULL;
	if (told)
		*told = summary ? atol(summary + 7) : -1;
	munmap(text, size);
	return lines;
}

/* The rate of the sends, the CPU time of the reader for each line, and the number of lines. */
struct phase {
	double rate, cpu_us;
	long lines;
};

struct result {
	struct phase flood, paced;
	long lost;
	double median_ms, late_ms;
};

static int compare(const void *one, const void *two)
{
	double a = *(const double *)one, b = *(const double *)two;

	return (a > b) - (a < b);
}

static struct phase measure(pid_t pid, struct wire wire, int file, int count, int pace)
{
	clockid_t clock;
	struct phase phase;
	size_t begin = size_of(file);
	uint64_t before;

	if (clock_getcpuclockid(pid, &clock))
		die("clock_getcpuclockid");
	before = clock_ns(clock);
	phase.rate = count / send_all(wire, count, pace);
	settle(file);
	before = clock_ns(clock) - before;
	phase.lines = count_lines(file, begin, NULL);
	phase.cpu_us = before / 1e3 / phase.lines;
	return phase;
}

static void throughput(const struct reader *reader, struct wire wire, struct result *result)
{
	int file = memfd_create("lines", 0);
	pid_t pid = start(reader, wire.port, file, file);
	long told;

	result->flood = measure(pid, wire, file, FLOOD, 0);
	result->paced = measure(pid, wire, file, PACED, PACE);
	stop(pid);
	count_lines(file, 0, &told);
	result->lost = FLOOD + PACED - result->flood.lines - result->paced.lines;
	if (told != result->lost)
		printf("%s tells of %ld losses, and %ld lines are missing\n", reader->name, told, result->lost);
	close(file);
}

static void latency(const struct reader *reader, struct wire wire, struct result *result)
{
	static double took[SLOW];
	static char text[1 << 20];
	size_t size = 0;
	int out[2], seen = 0;
	pid_t pid, sender;

	if (pipe(out))
		die("pipe");
	pid = start(reader, wire.port, out[1], out[0]);
	close(out[1]);
	sender = fork();
	if (!sender) {
		send_all(wire, SLOW, SLOW_PACE);
		_exit(0);
	}
	while (seen < SLOW) {
		ssize_t got = read(out[0], text + size, sizeof(text) - size);
		uint64_t now = clock_ns(CLOCK_MONOTONIC);
		char *line = text, *end;

		if (got <= 0)
			die("the reader ended");
		size += got;
		for (; (end = memchr(line, '\n', text + size - line)); line = end + 1) {
			char *at = memmem(line, end - line, "\"mono_ns\":", 10);

			if (at && seen < SLOW)
				took[seen++] = (now - strtoull(at + 10, NULL, 10)) / 1e6;
		}
		size -= line - text;
		memmove(text, line, size);
	}
	waitpid(sender, NULL, 0);
	kill(pid, SIGTERM);
	while (read(out[0], text, sizeof(text)) > 0)
		;
	close(out[0]);
	waitpid(pid, NULL, 0);
	qsort(took, seen, sizeof(*took), compare);
	result->median_ms = took[seen / 2];
	result->late_ms = took[seen * 999 / 1000];
}

static double median(const struct result *results, int runs, size_t offset)
{
	double all[MOST_RUNS];

	for (int i = 0; i < runs; i++)
		all[i] = *(const double *)((const char *)&results[i] + offset);
	qsort(all, runs, sizeof(*all), compare);
	return (all[(runs - 1) / 2] + all[runs / 2]) / 2;
}

#define MEDIAN(results, field) median(results, runs, offsetof(struct result, field))

/* Prints a row. Returns the most events that were lost in a run. */
static long row(const char *name, const struct result *results, int runs)
{
	long most = 0, most_paced = 0;

	for (int i = 0; i < runs; i++)
		if (FLOOD - results[i].flood.lines > most)
			most = FLOOD - results[i].flood.lines;
	for (int i = 0; i < runs; i++)
		if (PACED - results[i].paced.lines > most_paced)
			most_paced = PACED - results[i].paced.lines;
	printf("%-8s %9.0f %9.2f %9ld %9.0f %9.2f %9ld %9.2f %9.2f\n", name, MEDIAN(results, flood.rate),
	       MEDIAN(results, flood.cpu_us), most, MEDIAN(results, paced.rate), MEDIAN(results, paced.cpu_us), most_paced,
	       MEDIAN(results, median_ms), MEDIAN(results, late_ms));
	return most + most_paced;
}

int main(int argc, char **argv)
{
	static struct result ours[MOST_RUNS], theirs[MOST_RUNS];
	int runs = argc > 3 ? atoi(argv[3]) : 0;
	char *command[64] = { argv[1], "trace", "--json", "--events", "send", "--perf-pages", "64", "--port", "PORT" };
	struct reader xctl = { "xctl", command, NULL }, plain = { "libbpf", NULL, argv[2] };
	struct wire wire;
	long lost_by_us, lost_by_them;
	double ratio;

	if (runs < 1 || runs > MOST_RUNS || argc > 50) {
		fprintf(stderr, "usage: reader XCTL OBJECT RUNS [OPTION...]\n");
		return 2;
	}
	for (int i = 4; i < argc; i++)
		command[i + 5] = argv[i];
	setvbuf(stdout, NULL, _IOLBF, 0);
	wire = connect_wire();
	start_receiver(wire);
	for (int run = 0; run < runs; run++) {
		throughput(&xctl, wire, &ours[run]);
		throughput(&plain, wire, &theirs[run]);
		latency(&xctl, wire, &ours[run]);
		setenv("READER_FLUSH", "1", 1);
		latency(&plain, wire, &theirs[run]);
		unsetenv("READER_FLUSH");
	}
	printf("%d runs by turns: %d events as fast as loopback makes them, %d at %d a second, %d at %d a second for the latency;\n"
	       "medians, but of `lost` the most of a run; CPU time for each line\n",
	       runs, FLOOD, PACED, PACE, SLOW, SLOW_PACE);
	printf("%-8s %9s %9s %9s %9s %9s %9s %9s %9s\n", "", "events/s", "us of CPU", "lost", "events/s", "us of CPU", "lost",
	       "ms", "99.9 %");
	lost_by_us = row("xctl", ours, runs);
	lost_by_them = row("libbpf", theirs, runs);
	ratio = MEDIAN(ours, flood.cpu_us) / MEDIAN(theirs, flood.cpu_us);
	add_row("CPU an event, a million events", "us", MEDIAN(ours, flood.cpu_us), "libbpf", MEDIAN(theirs, flood.cpu_us),
		MOST_CPU_RATIO);
	add_row("events a second, as fast as loopback", "1/s", MEDIAN(ours, flood.rate), "libbpf", MEDIAN(theirs, flood.rate), -1);
	add_row("events lost, most of a run", "events", lost_by_us, "libbpf", lost_by_them, 1);
	add_row("latency, median", "ms", MEDIAN(ours, median_ms), "libbpf", MEDIAN(theirs, median_ms), -1);
	add_row("latency, 99.9 %", "ms", MEDIAN(ours, late_ms), "libbpf", MEDIAN(theirs, late_ms), -1);
	printf("CPU an event, of what libbpf takes %.2f times, at most %.1f times%s\n", ratio, MOST_CPU_RATIO,
	       ratio > MOST_CPU_RATIO ? ": TOO MUCH" : "");
	printf("lost %ld, at most as many as libbpf, %ld%s\n", lost_by_us, lost_by_them, lost_by_us > lost_by_them ? ": TOO MUCH" : "");
	return ratio > MOST_CPU_RATIO || lost_by_us > lost_by_them;
}
