// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * The cost of the ledger, beside the same programs without it: ledger OBJECT CONNECTIONS
 *
 * libbpf loads the programs at inet_sock_set_state, by turns with the ledger and without. Connections over loopback are made and
 * then closed. The kernel's statistics tell how long the programs ran (BPF_STATS_RUN_TIME). Most changes of state are no end of a
 * connection; each connection has two ends. A tick is what `xctl top` and the end of a run do: each open socket is read once.
 */
#include <arpa/inet.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/bpf.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include "../../bpf-src/events.h"
#include "median.h"
#include "row.h"

#define ROUNDS 9
#define MOST 2000

/* Nanoseconds. */
struct figures {
	double change;	/* a change of state, of connections that are made */
	double closing;	/* all changes of state of a connection that is closed */
	double tick;	/* reading one open socket */
};

static const char *const programs[] = { "tp_state", "tp2_state", "tr_account" };

static struct bpf_object *load(const char *path, bool ledger)
{
	struct bpf_program *program;
	struct bpf_object *object;
	struct settings *settings;
	size_t size;

	object = bpf_object__open_file(path, NULL);
	if (!object)
		die("open");
	bpf_object__for_each_program(program, object)
		bpf_program__set_autoload(program, false);
	for (size_t i = 0; i < sizeof(programs) / sizeof(*programs); i++)
		bpf_program__set_autoload(bpf_object__find_program_by_name(object, programs[i]), true);
	bpf_map__set_max_entries(bpf_object__find_map_by_name(object, "SOCKET_TO_PID"), 65536);
	settings = bpf_map__initial_value(bpf_object__find_map_by_name(object, ".rodata"), &size);
	settings->births_by_state = 1;
	settings->ledger = ledger;
	if (bpf_object__load(object))
		die("load");
	for (size_t i = 0; i < 2; i++)
		if (!bpf_program__attach(bpf_object__find_program_by_name(object, programs[i])))
			die("attach");
	return object;
}

/* How long both programs at the tracepoint have run, and how often the first. */
static void look(struct bpf_object *object, double *ns, double *runs)
{
	*ns = *runs = 0;
	for (size_t i = 0; i < 2; i++) {
		struct bpf_prog_info info = {};
		__u32 size = sizeof(info);

		if (bpf_obj_get_info_by_fd(bpf_program__fd(bpf_object__find_program_by_name(object, programs[i])), &info, &size))
			die("asking about a program");
		*ns += info.run_time_ns;
		if (!i)
			*runs = info.run_cnt;
	}
}

static int take(void *context, void *record, size_t size)
{
	(void)context, (void)record, (void)size;
	return 0;
}

static int ours[MOST], theirs[MOST];

static void connect_all(int connections)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof(at);
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	if (bind(listener, (void *)&at, size) || listen(listener, 16) || getsockname(listener, (void *)&at, &size))
		die("listen");
	for (int i = 0; i < connections; i++) {
		ours[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (ours[i] < 0 || connect(ours[i], (void *)&at, size))
			die("connect");
		theirs[i] = accept(listener, NULL, NULL);
		if (theirs[i] < 0)
			die("accept");
	}
	close(listener);
}

/* Reads each entry of SOCKET_TO_PID as xctl does. Returns nanoseconds for one. */
static double tick(struct bpf_object *object, struct ring_buffer *ring)
{
	int map = bpf_object__find_map_fd_by_name(object, "SOCKET_TO_PID");
	int program = bpf_program__fd(bpf_object__find_program_by_name(object, "tr_account"));
	static __u64 words[2 * MOST][sizeof(struct flow) / sizeof(__u64) + 1];
	struct timespec begin, end;
	int count = 0;
	void *last = NULL;

	while (count < 2 * MOST && !bpf_map_get_next_key(map, last, words[count]))
		last = words[count++];
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < count; i++) {
		LIBBPF_OPTS(bpf_test_run_opts, options, .ctx_in = words[i], .ctx_size_in = sizeof(words[i]));

		if (bpf_prog_test_run_opts(program, &options))
			die("running tr_account");
		if (i % 512 == 511)
			ring_buffer__consume(ring);
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	ring_buffer__consume(ring);
	return ((end.tv_sec - begin.tv_sec) * 1e9 + end.tv_nsec - begin.tv_nsec) / (count ?: 1);
}

static struct figures measure(const char *path, bool ledger, int connections)
{
	struct bpf_object *object = load(path, ledger);
	struct ring_buffer *ring = ring_buffer__new(bpf_object__find_map_fd_by_name(object, "LEDGER"), take, NULL, NULL);
	int statistics = bpf_enable_stats(BPF_STATS_RUN_TIME);
	double ns[3], runs[3];
	struct figures figures;

	if (!ring || statistics < 0)
		die("statistics");
	look(object, &ns[0], &runs[0]);
	connect_all(connections);
	look(object, &ns[1], &runs[1]);
	figures.tick = tick(object, ring);
	for (int i = 0; i < connections; i++) {
		close(ours[i]);
		close(theirs[i]);
		if (i % 256 == 255)	/* before a quarter of the ring is full, from where on each account wakes the reader */
			ring_buffer__consume(ring);
	}
	look(object, &ns[2], &runs[2]);
	figures.change = (ns[1] - ns[0]) / (runs[1] - runs[0]);
	figures.closing = (ns[2] - ns[1]) / connections;
	return figures;
}

/* In a process of its own, whose end detaches everything. */
static struct figures apart(const char *path, bool ledger, int connections)
{
	struct figures figures;
	int out[2], status;
	pid_t pid;

	if (pipe(out))
		die("pipe");
	pid = fork();
	if (!pid) {
		figures = measure(path, ledger, connections);
		_exit(write(out[1], &figures, sizeof(figures)) != sizeof(figures));
	}
	close(out[1]);
	if (read(out[0], &figures, sizeof(figures)) != sizeof(figures))
		die("no figures");
	close(out[0]);
	waitpid(pid, &status, 0);
	return figures;
}

int main(int argc, char **argv)
{
	double change[2][ROUNDS], closing[2][ROUNDS], ticks[ROUNDS], without, with;
	int connections = argc == 3 ? atoi(argv[2]) : 0;
	struct rlimit all;

	if (connections < 1 || connections > MOST) {
		fprintf(stderr, "usage: ledger OBJECT CONNECTIONS (at most %d)\n", MOST);
		return 2;
	}
	getrlimit(RLIMIT_NOFILE, &all);
	all.rlim_cur = all.rlim_max;
	setrlimit(RLIMIT_NOFILE, &all);
	for (int round = 0; round < ROUNDS; round++) {
		for (int ledger = 0; ledger < 2; ledger++) {
			struct figures figures = apart(argv[1], ledger, connections);

			change[ledger][round] = figures.change;
			closing[ledger][round] = figures.closing;
			if (ledger)
				ticks[round] = figures.tick;
		}
	}
	printf("%d rounds of %d connections by turns, nanoseconds, medians; both programs at inet_sock_set_state\n", ROUNDS, connections);
	without = median(change[0], ROUNDS);
	with = median(change[1], ROUNDS);
	printf("a change of state that is no end      %7.0f without the ledger, %7.0f with it: %+.0f\n", without, with, with - without);
	add_row("change of state", "ns", with, "without the ledger", without, -1);
	without = median(closing[0], ROUNDS);
	with = median(closing[1], ROUNDS);
	printf("closing a connection, with two ends   %7.0f without the ledger, %7.0f with it: %+.0f for each end\n", without, with,
	       (with - without) / 2);
	add_row("closing a connection", "ns", with, "without the ledger", without, -1);
	with = median(ticks, ROUNDS);
	printf("reading an open socket, with the call %7.0f\n", with);
	add_row("reading an open socket", "ns", with, NULL, 0, -1);
	return 0;
}
