// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What xctl's programs cost at each send, beside an empty program: send ROUNDS XCTL [OPTION...]
 *
 * Sends over loopback while `XCTL OPTION...` runs: on 1 and on 1,000 sockets in turn, on one CPU and on all CPUs at once; then on
 * 100,000 sockets in turn. The kernel's statistics tell how long each program ran (BPF_STATS_RUN_TIME). An empty program, at a
 * tracepoint of every send, runs in the same sends.
 */
#include <stdio.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include "median.h"
#include "row.h"
#include "senders.h"
#include "tools.h"

#define MOST_PROGRAMS 256
#define MOST_ROUNDS 99
#define MANY 100000
#define WINDOW 50000000	/* ns of sends in each round */
#define WITHIN 1.2	/* the most time on all CPUs at once, of that on one CPU */

static const struct measure {
	const char *name;
	int used;
	bool all;	/* on all CPUs at once, beside the measure before it */
} few[] = {
	{ "1 socket, one CPU", 1, false },
	{ "1 socket, all CPUs", 1, true },
	{ "1,000 sockets, one CPU", HERE, false },
	{ "1,000 sockets each, all CPUs", HERE, true },
}, many[] = {
	{ "100,000 sockets, one CPU", MANY, false },
};

#define MOST_MEASURES 4

static int senders[MOST_CPUS], cpus;
static struct crowd crowd;

static int attach_empty(const char *tracepoint)
{
	const struct bpf_insn empty[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	int program = bpf_prog_load(BPF_PROG_TYPE_RAW_TRACEPOINT, "empty", "GPL", empty, 2, NULL);

	if (program < 0)
		die("cannot load an empty program");
	return bpf_raw_tracepoint_open(tracepoint, program) < 0 ? -1 : program;
}

struct program {
	char name[BPF_OBJ_NAME_LEN];
	int fd;
	__u64 ns, runs;		/* since the last look */
	__u64 all_ns, all_runs;
	double each[MOST_MEASURES][MOST_ROUNDS];	/* ns a run */
};

/* The empty program is the first. */
static struct program programs[MOST_PROGRAMS];
static int count;

static void add_program(int fd)
{
	struct program *program = &programs[count];
	struct bpf_prog_info info = {};
	__u32 len = sizeof(info);

	if (fd < 0 || bpf_obj_get_info_by_fd(fd, &info, &len))
		return;
	*program = (struct program){ .fd = fd };
	memcpy(program->name, info.name, sizeof(info.name));
	/* others run for reads or changes of state */
	if (!count || strstr(program->name, "send"))
		count++;
	else
		close(fd);
}

static __u32 last_program(__u32 id)
{
	while (!bpf_prog_get_next_id(id, &id))
		;
	return id;
}

/* How long the programs have run since the last look. */
static void look(void)
{
	for (int i = 0; i < count; i++) {
		struct program *program = &programs[i];
		struct bpf_prog_info info = {};
		__u32 len = sizeof(info);

		if (bpf_obj_get_info_by_fd(program->fd, &info, &len))
			die("cannot ask for a program's statistics");
		program->ns = info.run_time_ns - program->all_ns;
		program->runs = info.run_cnt - program->all_runs;
		program->all_ns = info.run_time_ns;
		program->all_runs = info.run_cnt;
	}
}

static void once(const struct measure *measure)
{
	struct order warm_up = { .used = measure->used };

	if (measure->used == MANY) {
		send_once(&crowd);
		look();
		send_once(&crowd);
	} else {
		tell(senders, measure->all ? cpus : 1, &warm_up);
		look();
		tell_for(senders, measure->all ? cpus : 1, measure->used, WINDOW);
	}
	look();
}

/* Prints the figures of a measure, and returns the time of all xctl's programs together, ns. */
static double say(const struct measure *measure, int place, int rounds)
{
	double empty = median(programs[0].each[place], rounds), above = 0, together = 0;
	char what[80];

	printf("%-28s  empty program %.1f ns", measure->name, empty);
	for (int i = 1; i < count; i++) {
		double ns = median(programs[i].each[place], rounds);

		/* the other programs of the set do not run at this kernel's sends */
		if (!ns)
			continue;
		printf(", %s %.1f", programs[i].name, ns);
		above += ns - empty;
		together += ns;
	}
	printf("; above empty %.1f ns, %.2f of an empty program\n", above, above / empty);
	snprintf(what, sizeof(what), "a send above empty, %s", measure->name);
	add_row(what, "ns", above, "empty program", empty, -1);
	return together;
}

/* Returns whether a budget was exceeded. */
static bool measure(const struct measure *measures, int number, int rounds, char *const *xctl)
{
	__u32 before = last_program(0);
	struct tool tool;
	bool beyond = false;
	double alone = 0;

	enter(XCTL, &tool, xctl);
	count = 1;
	while (count < MOST_PROGRAMS && !bpf_prog_get_next_id(before, &before))
		add_program(bpf_prog_get_fd_by_id(before));
	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < number; i++) {
			once(&measures[i]);
			for (int j = 0; j < count; j++)
				programs[j].each[i][round] = programs[j].runs ? (double)programs[j].ns / programs[j].runs : 0;
		}
	}
	for (int i = 0; i < number; i++) {
		double time;
		char what[80];

		if (measures[i].all && cpus == 1) {
			printf("skip %s: there is one CPU\n", measures[i].name);
			continue;
		}
		time = say(&measures[i], i, rounds);
		if (measures[i].all) {
			printf("  all CPUs: %.1f ns together, %.2f of one CPU%s\n", time, time / alone,
			       time / alone > WITHIN ? ": TOO MUCH" : "");
			snprintf(what, sizeof(what), "programs of a send, %s", measures[i].name);
			add_row(what, "ns", time, "one CPU", alone, WITHIN);
			beyond |= time / alone > WITHIN;
		}
		alone = time;
	}
	leave(XCTL, &tool);
	while (count > 1)
		close(programs[--count].fd);
	return beyond;
}

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[1]) : 0, empty;
	bool beyond;

	if (rounds < 1 || rounds > MOST_ROUNDS) {
		fprintf(stderr, "usage: send ROUNDS XCTL [OPTION...] (at most %d rounds)\n", MOST_ROUNDS);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	raise_files();
	cpus = start_senders(senders);
	empty = attach_empty("sock_send_length");
	if (empty < 0)
		die("this kernel has no tracepoint sock_send_length");
	add_program(empty);
	if (bpf_enable_stats(BPF_STATS_RUN_TIME) < 0)
		die("cannot turn the kernel's statistics on");
	printf("medians of %d rounds by turns; %d CPUs\n", rounds, cpus);
	beyond = measure(few, 4, rounds, argv + 2);
	if (start_crowd(&crowd, MANY))
		beyond |= measure(many, 1, (rounds + 4) / 5, argv + 2);
	else
		printf("skip %s: a process may not open enough files\n", many[0].name);
	return beyond;
}
