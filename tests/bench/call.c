// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The time of send() with nothing, with xctl, and with bpftrace's script: call TURNS XCTL [OPTION...]
 *
 * By turns: nothing runs, `XCTL OPTION...` runs, or bpftrace runs scripts/retransmits.bt. In each turn, a process on one CPU and then
 * a process on each CPU send messages of 64 bytes over loopback, on one connection and on 1,000 connections in turn; 100,000
 * connections are one CPU's. A figure is the median of batches of ten sends, and of the turns. The receiving ends are read outside the
 * time, and nobody waits for them. Run it from the top of the source, with tracefs (scripts/with-tracefs).
 */
#include <stdio.h>
#include "median.h"
#include "row.h"
#include "senders.h"
#include "tools.h"

#define MOST_TURNS 99
#define MANY 100000
#define WINDOW 40000000	/* ns of sends in each turn */

static const struct measure {
	const char *name;
	int used;
	bool all;		/* on all CPUs at once */
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

static double once(const struct measure *measure)
{
	int count = measure->all ? cpus : 1;
	struct order warm_up = { .used = measure->used };

	if (measure->used == MANY) {
		send_once(&crowd);	/* xctl has seen the sockets then */
		return send_once(&crowd);
	}
	tell(senders, count, &warm_up);
	return tell_for(senders, count, measure->used, WINDOW);
}

static void say(const struct measure *measure, double (*figures)[MOST_TURNS], int turns, bool with_bpftrace)
{
	double with[STATES] = {};
	char what[80];

	printf("send(), %-29s", measure->name);
	for (int state = 0; state < (with_bpftrace ? STATES : BPFTRACE); state++) {
		with[state] = median(figures[state], turns);
		printf("  %s %5.0f ns", states[state], with[state]);
		if (state)
			printf(" (%.3f)", with[state] / with[NOTHING]);
	}
	printf("\n");
	snprintf(what, sizeof(what), "send(), %s", measure->name);
	add_row(what, "ns", with[XCTL], "nothing", with[NOTHING], -1);
	if (with_bpftrace)
		add_row(what, "ns", with[XCTL], "bpftrace", with[BPFTRACE], -1);
}

static void measure(const struct measure *measures, int count, int turns, char *const *xctl)
{
	static double figures[MOST_MEASURES][STATES][MOST_TURNS];
	static bool with_bpftrace = true;
	struct tool tool;

	for (int turn = 0; turn < turns; turn++) {
		for (int state = 0; state < STATES; state++) {
			if (state == BPFTRACE && !with_bpftrace)
				continue;
			if (!enter(state, &tool, xctl)) {
				with_bpftrace = false;
				continue;
			}
			for (int i = 0; i < count; i++)
				figures[i][state][turn] = once(&measures[i]);
			leave(state, &tool);
		}
	}
	for (int i = 0; i < count; i++) {
		if (measures[i].all && cpus == 1)
			printf("skip send(), %s: there is one CPU\n", measures[i].name);
		else
			say(&measures[i], figures[i], turns, with_bpftrace);
	}
}

int main(int argc, char **argv)
{
	int turns = argc > 2 ? atoi(argv[1]) : 0;

	if (turns < 1 || turns > MOST_TURNS) {
		fprintf(stderr, "usage: call TURNS XCTL [OPTION...] (at most %d turns)\n", MOST_TURNS);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	raise_files();
	cpus = start_senders(senders);
	printf("medians of %d turns, in brackets the ratio to nothing; %d CPUs\n", turns, cpus);
	measure(few, 4, turns, argv + 2);
	if (start_crowd(&crowd, MANY))
		measure(many, 1, (turns + 4) / 5, argv + 2);
	else
		printf("skip send(), %s: a process may not open enough files\n", many[0].name);
	return 0;
}
