// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What xctl takes to start, against libbpf alone, and what it costs in memory: start XCTL OBJECT RUNS [OPTION...]
 *
 * Run by turns: `xctl trace OPTION...`, from exec to its record `ready`, and in a fresh process libbpf's own open, load and
 * attach of the programs that xctl has attached, with the same settings and map sizes. xctl also checks the object, reads
 * BTF itself, proves what is loaded, opens rings and learns of the sockets that are open; libbpf does not. Exits 1 beyond a
 * budget.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/types.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "../../bpf-src/events.h"
#include "median.h"
#include "row.h"

#define MOST_RUNS 1000
#define MOST_RATIO 1.2
#define MOST_RESIDENT_KB 4000	/* beyond the rings and maps, with all attached */
#define MOST_PEAK_KB 12000

static double now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

/* The first line that xctl printed: its record `ready`. */
static char ready[1 << 16];

static void read_ready(int from)
{
	size_t len = 0;
	ssize_t got;

	do {
		got = read(from, ready + len, sizeof(ready) - 1 - len);
		if (got <= 0)
			die("xctl ended without `ready`");
		len += got;
	} while (!memchr(ready, '\n', len));
	ready[len] = 0;
	if (!strstr(ready, "\"type\":\"ready\"") || !strstr(ready, "\"proven\":true"))
		die(ready);
}

/* Whether `ready` says that this program is attached. */
static bool is_attached(const char *program)
{
	char quoted[64];

	snprintf(quoted, sizeof(quoted), "\"program\":\"%s\"", program);
	return strstr(ready, quoted);
}

/* The kB that a file of /proc tells under each `name` within the mappings, or all of it, that `wanted` accepts. */
static long sum_kb(pid_t pid, const char *file, const char *name, bool (*wanted)(const char *mapping))
{
	char path[64], line[4096];
	bool counts = !wanted;
	long sum = 0;
	FILE *from;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, file);
	from = fopen(path, "r");
	if (!from)
		die(path);
	while (fgets(line, sizeof(line), from)) {
		if (wanted && line[0] >= '0' && strchr("0123456789abcdef", line[0]))
			counts = wanted(line);
		else if (counts && !strncmp(line, name, strlen(name)))
			sum += atol(line + strlen(name));
	}
	fclose(from);
	return sum;
}

/* The kernel's own memory: rings of perf events, and maps. */
static bool is_ring_or_map(const char *mapping)
{
	return strstr(mapping, "anon_inode:[perf_event]") || strstr(mapping, "anon_inode:bpf-map");
}

struct memory {
	long resident_kb, peak_kb;
};

static double xctl(char **argv, struct memory *memory)
{
	double begin, took;
	int out[2], status;
	char summary[512];
	pid_t pid;

	if (pipe(out))
		die("pipe");
	begin = now_ms();
	pid = fork();
	if (!pid) {
		dup2(out[1], STDOUT_FILENO);
		close(out[0]);
		close(out[1]);
		execv(argv[0], argv);
		die(argv[0]);
	}
	close(out[1]);
	read_ready(out[0]);
	took = now_ms() - begin;
	usleep(50000); /* so that it has come to wait for records */
	memory->resident_kb = sum_kb(pid, "smaps", "Rss:", NULL) - sum_kb(pid, "smaps", "Rss:", is_ring_or_map);
	memory->peak_kb = sum_kb(pid, "status", "VmHWM:", NULL);
	kill(pid, SIGTERM);
	while (read(out[0], summary, sizeof(summary)) > 0)
		;
	close(out[0]);
	if (waitpid(pid, &status, 0) < 0 || status)
		die("xctl did not end well");
	return took;
}

static int quiet(enum libbpf_print_level level, const char *format, va_list args)
{
	return level == LIBBPF_WARN ? vfprintf(stderr, format, args) : 0;
}

/* A program that is not attached: xctl runs it to read the counters of open connections. */
static bool is_on_request(const char *program)
{
	return !strcmp(program, "tr_account");
}

/* Open, load and attach, as libbpf does it by itself. */
static double open_load_attach(const char *path)
{
	bool by_state = strstr(ready, "\"attach\":\"tracepoint\"");
	const char *max_sockets = strstr(ready, "\"max_sockets\":");
	struct settings *settings;
	struct bpf_program *program;
	struct bpf_object *object;
	struct bpf_link *link;
	double begin = now_ms();
	size_t size;

	object = bpf_object__open_file(path, NULL);
	if (!object)
		die("open");
	bpf_object__for_each_program(program, object) {
		const char *name = bpf_program__name(program);

		bpf_program__set_autoload(program, is_attached(name) || is_on_request(name) || !strcmp(name, "it_seed"));
	}
	size = strtoul(max_sockets + strlen("\"max_sockets\":"), NULL, 10);
	bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "SOCKET_TO_PID"), size);
	bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "SK_CACHE"), size);
	settings = bpf_map__initial_value(bpf_object__find_map_by_name(object, ".rodata"), &size);
	settings->retransmits = 1;
	settings->ledger = 1;
	settings->births_by_state = by_state;
	if (bpf_object__load(object))
		die("load");
	bpf_object__for_each_program(program, object) {
		if (!bpf_program__autoload(program) || is_on_request(bpf_program__name(program)))
			continue;
		link = bpf_program__attach(program);
		if (!link)
			die(bpf_program__name(program));
	}
	return now_ms() - begin; /* the process ends here, and the kernel lets go */
}

static double libbpf(const char *path)
{
	double took;
	int out[2], status;
	pid_t pid;

	if (pipe(out))
		die("pipe");
	pid = fork();
	if (!pid) {
		libbpf_set_print(quiet);
		took = open_load_attach(path);
		_exit(write(out[1], &took, sizeof(took)) != sizeof(took));
	}
	close(out[1]);
	if (read(out[0], &took, sizeof(took)) != sizeof(took))
		die("libbpf alone failed");
	close(out[0]);
	waitpid(pid, &status, 0);
	return took;
}

static int verdict(const char *what, double is, double most, const char *unit)
{
	printf("%-52s %8.2f%s, at most %.1f%s\n", what, is, unit, most, is > most ? ": TOO MUCH" : "");
	return is > most;
}

int main(int argc, char **argv)
{
	static double ours[MOST_RUNS], theirs[MOST_RUNS], resident[MOST_RUNS], peak[MOST_RUNS];
	struct memory memory = {};
	char *object, *command[64] = {};
	double ratio;
	int runs;

	/* In a virtual machine the machine's name comes first. */
	if (argc > 2 && !strcmp(argv[1], "--on")) {
		argv += 2;
		argc -= 2;
	}
	runs = argc > 3 ? atoi(argv[3]) : 0;
	if (runs < 1 || runs > MOST_RUNS || argc > 60) {
		fprintf(stderr, "usage: start XCTL OBJECT RUNS [OPTION...]\n");
		return 2;
	}
	object = argv[2];
	command[0] = argv[1];
	command[1] = "trace";
	command[2] = "--json";
	for (int i = 4; i < argc; i++)
		command[i - 1] = argv[i];
	xctl(command, &memory); /* brings the files into memory */
	for (int run = 0; run < runs; run++) {
		theirs[run] = libbpf(object);
		ours[run] = xctl(command, &memory);
		resident[run] = memory.resident_kb / 1e3;
		peak[run] = memory.peak_kb / 1e3;
	}
	ratio = median(ours, runs) / median(theirs, runs);
	add_row("start to ready", "ms", median(ours, runs), "libbpf", median(theirs, runs), MOST_RATIO);
	add_row("resident memory", "MB", median(resident, runs), NULL, 0, MOST_RESIDENT_KB / 1e3);
	add_row("peak memory", "MB", median(peak, runs), NULL, 0, MOST_PEAK_KB / 1e3);
	/* Memory is a median, too: the kernel counts pages for each CPU by itself, and adds up only now and then (percpu_counter). */
	printf("%d runs by turns: xctl ready after %.1f ms (%.1f to %.1f), libbpf alone %.1f ms (%.1f to %.1f); medians\n", runs,
	       median(ours, runs), ours[0], ours[runs - 1], median(theirs, runs), theirs[0], theirs[runs - 1]);
	return verdict("start, of what libbpf takes", ratio, MOST_RATIO, " times") |
	       verdict("resident, beyond rings and maps", median(resident, runs), MOST_RESIDENT_KB / 1e3, " MB") |
	       verdict("peak", median(peak, runs), MOST_PEAK_KB / 1e3, " MB");
}
