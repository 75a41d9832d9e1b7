/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* The states in which a benchmark measures by turns: nothing runs, xctl runs, or bpftrace runs. */
#ifndef XCTL_BENCH_TOOLS_H
#define XCTL_BENCH_TOOLS_H

#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "die.h"

#define SCRIPT "scripts/retransmits.bt"

enum { NOTHING, XCTL, BPFTRACE, STATES };

static const char *const states[] = { "nothing", "xctl", "bpftrace" };

struct tool {
	pid_t pid;
	int output;	/* it ends with the process */
};

/* Starts a command, and reads its output until that says `ready`. Otherwise `said` ends with its last words. */
static inline bool start(struct tool *tool, char *const *argv, bool errors, char *said, size_t size)
{
	size_t used = 0;
	ssize_t got;
	int out[2];

	if (pipe(out))
		die("pipe");
	tool->pid = fork();
	if (!tool->pid) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(out[1], 1);
		if (errors)
			dup2(out[1], 2);
		close(out[0]);
		close(out[1]);
		execvp(argv[0], argv);
		dprintf(1, "%s: %s", argv[0], strerror(errno));
		_exit(127);
	}
	close(out[1]);
	tool->output = out[0];
	for (;;) {
		if (used == size - 1)
			used = 0;
		got = read(tool->output, said + used, size - 1 - used);
		if (got <= 0)
			break;
		used += got;
		said[used] = 0;
		if (strstr(said, "ready"))
			return true;
	}
	close(tool->output);
	waitpid(tool->pid, NULL, 0);
	while (used && said[used - 1] == '\n')
		said[--used] = 0;
	return false;
}

/* Ends a command, and forgets what it has printed. */
static inline void stop(struct tool *tool)
{
	static char rest[1 << 16];

	kill(tool->pid, SIGINT);
	while (read(tool->output, rest, sizeof(rest)) > 0)
		;
	close(tool->output);
	waitpid(tool->pid, NULL, 0);
}

/* Enters a state. Returns false if bpftrace cannot run, and says why. Without xctl there is no benchmark. */
static inline bool enter(int state, struct tool *tool, char *const *xctl)
{
	char *const bpftrace[] = { "bpftrace", "-B", "line", SCRIPT, NULL };
	char said[4096] = "";

	if (state == NOTHING)
		return true;
	if (start(tool, state == XCTL ? xctl : bpftrace, state == BPFTRACE, said, sizeof(said)))
		return true;
	if (state == XCTL) {
		fprintf(stderr, "xctl ended without `ready`\n");
		exit(2);
	}
	printf("skip bpftrace: %s\n", said);
	return false;
}

static inline void leave(int state, struct tool *tool)
{
	if (state != NOTHING)
		stop(tool);
}

#endif
