// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Connections a second with nothing, with xctl, and with bpftrace's script: churn TURNS XCTL [OPTION...]
 *
 * By turns: nothing runs, `XCTL OPTION...` runs, or bpftrace runs scripts/retransmits.bt. In each turn, a process on one CPU and then
 * a process on each CPU make connections over loopback, one after the other: connect, accept, 64 bytes each way, and both ends are
 * closed. The process holds both ends. One more figure is the CPU time of xctl's own process. Run it from the top of the source, with
 * tracefs (scripts/with-tracefs).
 */
#include <stdio.h>
#include <netinet/in.h>
#include "median.h"
#include "row.h"
#include "tools.h"
#include "workers.h"

#define MOST_TURNS 99
#define WINDOW 200000000	/* ns of connections in each turn */
#define WARM_UP 20000000

static int workers[MOST_CPUS], cpus;

static void exchange(int from, int to)
{
	char bytes[64] = "";

	if (send(from, bytes, sizeof(bytes), 0) != sizeof(bytes) || recv(to, bytes, sizeof(bytes), MSG_WAITALL) != sizeof(bytes))
		die("a message");
}

/* One connection from its start to its end. The last close resets it, so that no port stays in TIME_WAIT: ports would run out. */
static void connect_and_close(int listener, const struct sockaddr_in *at)
{
	const struct linger reset = { .l_onoff = 1 };
	int client = socket(AF_INET, SOCK_STREAM, 0), server;
	char end;

	if (client < 0 || connect(client, (const void *)at, sizeof(*at)))
		die("cannot connect");
	server = accept(listener, NULL, NULL);
	if (server < 0)
		die("cannot accept");
	exchange(client, server);
	exchange(server, client);
	close(server);
	if (recv(client, &end, 1, 0))
		die("no end");
	setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	close(client);
}

/* Connections a second. */
static double churn(const struct order *order)
{
	static struct sockaddr_in at;
	static int listener = -1;
	socklen_t len = sizeof(at);
	long long began = now(), ended = began;
	long made = 0;

	if (listener < 0) {
		at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		listener = socket(AF_INET, SOCK_STREAM, 0);
		if (bind(listener, (void *)&at, len) || listen(listener, 16) || getsockname(listener, (void *)&at, &len))
			die("cannot listen");
	}
	for (; ended < order->end; made++) {
		connect_and_close(listener, &at);
		ended = now();
	}
	return made * 1e9 / (ended - began);
}

/* The CPU time of a process, ns. */
static double cpu_time(pid_t pid)
{
	struct timespec time;
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time))
		die("the clock of a process");
	return time.tv_sec * 1e9 + time.tv_nsec;
}

static void say(const char *name, double (*figures)[MOST_TURNS], int turns, bool with_bpftrace)
{
	double with[STATES] = {};
	char what[80];

	printf("connections a second, %-8s", name);
	for (int state = 0; state < (with_bpftrace ? STATES : BPFTRACE); state++) {
		with[state] = median(figures[state], turns);
		printf("  %s %6.0f", states[state], with[state]);
		if (state)
			printf(" (%.3f)", with[state] / with[NOTHING]);
	}
	printf("\n");
	snprintf(what, sizeof(what), "connections, %s", name);
	add_row(what, "1/s", with[XCTL], "nothing", with[NOTHING], -1);
	if (with_bpftrace)
		add_row(what, "1/s", with[XCTL], "bpftrace", with[BPFTRACE], -1);
}

int main(int argc, char **argv)
{
	static double one[STATES][MOST_TURNS], all[STATES][MOST_TURNS], cpu[MOST_TURNS];
	int turns = argc > 2 ? atoi(argv[1]) : 0;
	bool with_bpftrace = true;
	struct tool tool;
	double began, cpu_ns;

	if (turns < 1 || turns > MOST_TURNS) {
		fprintf(stderr, "usage: churn TURNS XCTL [OPTION...] (at most %d turns)\n", MOST_TURNS);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	cpus = start_on_each_cpu(churn, workers);
	printf("medians of %d turns, in brackets the ratio to nothing; %d CPUs\n", turns, cpus);
	for (int turn = 0; turn < turns; turn++) {
		for (int state = 0; state < STATES; state++) {
			if (state == BPFTRACE && !with_bpftrace)
				continue;
			if (!enter(state, &tool, argv + 2)) {
				with_bpftrace = false;
				continue;
			}
			tell_for(workers, cpus, 0, WARM_UP);
			began = state == XCTL ? cpu_time(tool.pid) : 0;
			one[state][turn] = tell_for(workers, 1, 0, WINDOW);
			if (state == XCTL)
				cpu[turn] = (cpu_time(tool.pid) - began) / (one[state][turn] * WINDOW / 1e9);
			all[state][turn] = tell_for(workers, cpus, 0, WINDOW) * cpus;
			leave(state, &tool);
		}
	}
	say("one CPU", one, turns, with_bpftrace);
	if (cpus > 1)
		say("all CPUs", all, turns, with_bpftrace);
	else
		printf("skip all CPUs: there is one\n");
	cpu_ns = median(cpu, turns);
	printf("CPU time of the process xctl for a connection: %.1f us\n", cpu_ns / 1e3);
	add_row("CPU time of xctl for a connection", "us", cpu_ns / 1e3, NULL, 0, -1);
	return 0;
}
