// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What xctl's programs cost at each send, beside an empty program: send XCTL SENDS [OPTION...]
 * What a send costs in sets of hooks, beside a send without xctl: send --sets XCTL SENDS SET...
 *
 * Sends over loopback while `xctl trace OPTION...` runs, on 1 and on 1,000 sockets in turn. The kernel's statistics tell how
 * long each program ran (BPF_STATS_RUN_TIME). An empty program, at a tracepoint of every send, runs in the same sends.
 *
 * With --sets, the time of a send includes the way to the programs: probes and trampolines. The emulator's clock counts
 * instructions if it runs with `-icount shift=0`.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include "row.h"

#define SOCKETS 1000
#define MOST_PROGRAMS 256
#define ROUNDS 5

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

/* Its output, which ends with it. */
static int output;

static pid_t start(char **argv)
{
	int out[2];
	char ready;
	pid_t pid;

	if (pipe(out))
		die("pipe");
	pid = fork();
	if (!pid) {
		dup2(out[1], 1);
		execv(argv[0], argv);
		die(argv[0]);
	}
	close(out[1]);
	output = out[0];
	if (read(output, &ready, 1) != 1)
		die("xctl ended without `ready`");
	return pid;
}

static int sockets[SOCKETS], peers[SOCKETS];

static void connect_all(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, i;
	socklen_t len = sizeof(at);

	if (bind(listener, (void *)&at, len) || listen(listener, 128) || getsockname(listener, (void *)&at, &len))
		die("cannot listen");
	for (i = 0; i < SOCKETS; i++) {
		sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (sockets[i] < 0 || connect(sockets[i], (void *)&at, len))
			die("cannot connect");
		setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		peers[i] = accept(listener, NULL, NULL);
		if (peers[i] < 0)
			die("cannot accept");
	}
}

/* Some sends, then some reads, so that nothing blocks. */
static void send_in_turn(int used, long sends)
{
	static char bytes[1 << 16];
	long sent, i;

	for (sent = 0; sent < sends; sent += SOCKETS) {
		for (i = 0; i < SOCKETS; i++)
			if (send(sockets[i % used], bytes, 64, 0) != 64)
				die("send");
		for (i = 0; i < used; i++)
			while (recv(peers[i], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
				;
	}
}

struct program {
	char name[BPF_OBJ_NAME_LEN];
	int fd;
	__u64 ns, runs;		/* since the last look */
	__u64 all_ns, all_runs;
	double each[ROUNDS];
};

static struct program programs[MOST_PROGRAMS];
static int count;

/* The programs that were loaded since the last call. */
static void find_programs(void)
{
	static __u32 id;

	while (count < MOST_PROGRAMS && !bpf_prog_get_next_id(id, &id)) {
		struct program *program = &programs[count];
		struct bpf_prog_info info = {};
		__u32 len = sizeof(info);

		program->fd = bpf_prog_get_fd_by_id(id);
		if (program->fd < 0 || bpf_obj_get_info_by_fd(program->fd, &info, &len))
			continue;
		memcpy(program->name, info.name, sizeof(info.name));
		count++;
	}
}

static void look(void)
{
	int i;

	for (i = 0; i < count; i++) {
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

static int in_order(const void *a, const void *b)
{
	return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static void measure(int used, long sends)
{
	double empty = 0, above = 0;
	int round, i;
	char what[64];

	send_in_turn(used, 2 * SOCKETS);
	look();
	for (round = 0; round < ROUNDS; round++) {
		send_in_turn(used, sends);
		look();
		for (i = 0; i < count; i++)
			programs[i].each[round] = programs[i].runs ? (double)programs[i].ns / programs[i].runs : 0;
	}
	for (i = 0; i < count; i++) {
		qsort(programs[i].each, ROUNDS, sizeof(double), in_order);
		if (!strcmp(programs[i].name, "empty"))
			empty = programs[i].each[ROUNDS / 2];
	}
	printf("%d socket%s: empty program %.1f ns", used, used > 1 ? "s in turn" : "", empty);
	for (i = 0; i < count; i++) {
		/* others run for reads or changes of state */
		if (!strstr(programs[i].name, "send") || !programs[i].runs)
			continue;
		printf(", %s %.1f", programs[i].name, programs[i].each[ROUNDS / 2]);
		above += programs[i].each[ROUNDS / 2] - empty;
	}
	printf("; above empty %.1f ns, %.2f of an empty program\n", above, above / empty);
	snprintf(what, sizeof(what), "a send above empty, %d socket%s", used, used > 1 ? "s in turn" : "");
	add_row(what, "ns", above, "empty program", empty, -1);
}

static void end(pid_t xctl)
{
	char rest[4096];

	kill(xctl, SIGINT);
	while (read(output, rest, sizeof(rest)) > 0)
		;
	close(output);
	waitpid(xctl, NULL, 0);
}

static long long now(void)
{
	struct timespec time;

	if (clock_gettime(CLOCK_MONOTONIC_RAW, &time))
		die("clock_gettime");
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* The median, in ns a send, of rounds of a few sends on one socket: most rounds have no interrupt of the timer in them. */
static double middle(long sends)
{
	enum { EACH = 10, MOST = 10000 };
	static char bytes[1 << 16];
	static double rounds[MOST];
	int round, used = sends / EACH < MOST ? sends / EACH : MOST, i;

	for (round = -used / 4; round < used; round++) {	/* the first ones warm up */
		long long began = now();

		for (i = 0; i < EACH; i++)
			if (send(sockets[0], bytes, 64, 0) != 64)
				die("send");
		if (round >= 0)
			rounds[round] = (double)(now() - began) / EACH;
		while (recv(peers[0], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
			;
	}
	qsort(rounds, used, sizeof(double), in_order);
	return rounds[used / 2];
}

static int measure_sets(char *xctl, long sends, char **sets)
{
	char *command[] = { xctl, "trace", "--json", "--attach", NULL, NULL };
	double alone;

	connect_all();
	alone = middle(sends);
	printf("without xctl: %.1f ns a send\n", alone);
	for (; *sets; sets++) {
		pid_t pid;
		double with;

		command[4] = *sets;
		pid = start(command);
		with = middle(sends);
		end(pid);
		printf("%s: %.1f ns a send, %.1f more\n", *sets, with, with - alone);
	}
	alone = middle(sends);
	printf("without xctl: %.1f ns a send\n", alone);
	return 0;
}

int main(int argc, char **argv)
{
	struct rlimit files = { 4096, 4096 };
	long sends;
	pid_t xctl;

	if (argc > 2 && !strcmp(argv[1], "--on")) {	/* tests/vm/run: the name of the machine */
		argv += 2;
		argc -= 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	setrlimit(RLIMIT_NOFILE, &files);
	if (argc > 4 && !strcmp(argv[1], "--sets") && (sends = atol(argv[3])) > 0)
		return measure_sets(argv[2], sends, argv + 4);

	if (argc < 3 || (sends = atol(argv[2])) <= 0) {
		fprintf(stderr, "usage: send XCTL SENDS [OPTION...], or send --sets XCTL SENDS SET...\n");
		return 2;
	}
	find_programs();
	count = 0;
	if (attach_empty("sock_send_length") < 0)
		die("this kernel has no tracepoint sock_send_length");
	if (bpf_enable_stats(BPF_STATS_RUN_TIME) < 0)
		die("cannot turn the kernel's statistics on");
	argv[2] = argv[1];
	xctl = start(argv + 2);
	connect_all();
	find_programs();
	measure(1, sends);
	measure(SOCKETS, sends);
	end(xctl);
	return 0;
}
