// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What a send costs in sets of hooks, beside a send without xctl: sets XCTL SENDS SET...
 *
 * The time of a send includes the way to the programs: probes and trampolines. The emulator's clock counts instructions if it runs
 * with `-icount shift=0`: then the figures are instructions. Each set is measured in two runs of xctl. The exit code is 1 if their
 * figures differ by more than 2 %.
 *
 * The rows of the table are lines of the output, since a guest does not have the file of its host.
 */
#include <stdio.h>
#include "median.h"
#include "row.h"
#include "senders.h"
#include "tools.h"

#define MOST_ROUNDS 99
#define WITHIN 0.02	/* the most that two runs may differ, of the figure */

/* The median, in ns a send, of rounds on one connection. */
static double some(long sends)
{
	const struct order round = { .used = 1 };
	double rounds[MOST_ROUNDS];
	int count = sends / FEW < 1 ? 1 : sends / FEW < MOST_ROUNDS ? sends / FEW : MOST_ROUNDS;

	for (int i = -1; i < count; i++) {	/* the first one warms up */
		double ns = send_in_turn(&round);

		if (i >= 0)
			rounds[i] = ns;
	}
	return median(rounds, count);
}

/* One run of each set, after a run without xctl, which is the first figure. */
static void run(char *xctl, long sends, char *const *sets, int count, double *figures)
{
	char *command[] = { xctl, "trace", "--json", "--attach", NULL, NULL };
	struct tool tool;

	figures[0] = some(sends);
	for (int i = 0; i < count; i++) {
		command[4] = sets[i];
		enter(XCTL, &tool, command);
		figures[1 + i] = some(sends);
		leave(XCTL, &tool);
	}
}

int main(int argc, char **argv)
{
	enum { MOST = 16 };
	double figures[2][1 + MOST], most = 0;
	int count;
	long sends;

	if (argc > 2 && !strcmp(argv[1], "--on")) {	/* tests/vm/run: the name of the machine */
		argv += 2;
		argc -= 2;
	}
	count = argc - 3;
	if (count < 1 || count > MOST || (sends = atol(argv[2])) <= 0) {
		fprintf(stderr, "usage: sets XCTL SENDS SET... (at most %d)\n", MOST);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	setenv("BENCH_ROWS", "/proc/self/fd/1", 0);
	open_up_to(1);
	for (int i = 0; i < 2; i++)
		run(argv[1], sends, argv + 3, count, figures[i]);
	for (int i = 0; i <= count; i++) {
		double one = figures[0][i], two = figures[1][i], differ = (one > two ? one - two : two - one) / one;

		printf("%-20s %8.1f ns a send, %8.1f in a second run: %.1f %% differ", i ? argv[2 + i] : "without xctl", one, two, differ * 100);
		if (i)
			printf("; %.1f and %.1f more than without xctl", one - figures[0][0], two - figures[1][0]);
		printf("%s\n", differ > WITHIN ? ": TOO MUCH" : "");
		if (differ > most)
			most = differ;
	}
	for (int i = 1; i <= count; i++) {
		char what[80];

		snprintf(what, sizeof(what), "instructions of a send, %s", argv[2 + i]);
		add_row(what, "instr", (figures[0][i] + figures[1][i]) / 2, "without xctl", (figures[0][0] + figures[1][0]) / 2, -1);
	}
	return most > WITHIN;
}
