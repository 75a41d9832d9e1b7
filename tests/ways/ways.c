// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Ways to use a socket for which a Rust program needs unsafe code, which the tests have none of: io_uring, fork() without
 * exec, pidfd_getfd(), bpf().
 *
 * A process with the name of its argument, which says "done PID" and then does what it is told, a line at a time:
 *
 *	listen ADDRESS			connect ADDRESS PORT		accept SOCKET HOW
 *	ask ADDRESS PORT		a connection by io_uring, not waited for
 *	send SOCKET HOW			1000 bytes
 *	contend SOCKET TIMES		a child "rival" sends 1 byte and it another at the same time, on two CPUs; then it
 *					alone 100, and the child alone 101; the child's PID
 *	shutdown SOCKET			sends FIN
 *	no_window SOCKET		lets the kernel think that the peer has closed its window
 *	take PID SOCKET			another process's socket
 *	pour SOCKET BYTES SIZE		a thread writes so many bytes, in writes of SIZE
 *	drain SOCKET SIZE MS		a thread reads SIZE at a time, with a pause of MS behind each, until the end
 *	tcp_info SOCKET			TCP_INFO and SO_MEMINFO of the socket, as hexadecimal digits
 *	forward FROM TO			lets the kernel send to one what comes in on the other
 *	crowd				keeps every CPU in a map operation of bpf(2)'s half the time, from now on
 *	fork NAME			a child that shares all; its number and PID
 *	succeed SOCKET FIRST SECOND	two children: FIRST sends a byte and exits, SECOND gets its PID within the clock tick in
 *					which FIRST was born, and is as of fork
 *	child NUMBER ORDER...		has a child carry out an order
 *	rename HOW NAME			takes another name: by prctl (without more), exec, or thread (exec() in another thread)
 *
 * HOW elsewhere: call (the system call), ring (io_uring), worker (in a worker of it), poll (in its thread that polls).
 * A socket is its descriptor. Answers: "done", followed for a new socket by it and both its addresses; "cannot WHY" where
 * this kernel cannot; "failed WHY".
 *
 * With more arguments, `to-trace PROGRAM ARGUMENT...`, it becomes that program at the first line that it reads, which calls
 * who traces it at every bpf(2), perf_event_open(2) and ioctl(2), and at no other system call. It may use one CPU only, so that
 * xctl makes all these calls in one thread.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *answers;

static void failed(const char *what)
{
	fprintf(answers, "failed %s: %s\n", what, strerror(errno));
}

/* ---- io_uring, by its system calls alone ---- */

struct ring {
	int fd;
	bool polled;	/* a thread of the kernel's takes what is submitted */
	unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
};

static void *map_ring(int fd, size_t size, off_t what)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
}

static bool open_ring(struct ring *ring, bool polled)
{
	struct io_uring_params params = { .flags = polled ? IORING_SETUP_SQPOLL : 0, .sq_thread_idle = 100 };
	char *sq, *cq;

	ring->fd = syscall(SYS_io_uring_setup, 8, &params);
	if (ring->fd < 0)
		return false;
	ring->polled = polled;
	sq = map_ring(ring->fd, params.sq_off.array + params.sq_entries * sizeof(unsigned), IORING_OFF_SQ_RING);
	cq = map_ring(ring->fd, params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe), IORING_OFF_CQ_RING);
	ring->sqes = map_ring(ring->fd, params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring->sqes == MAP_FAILED)
		return false;
	ring->sq_tail = (unsigned *)(sq + params.sq_off.tail);
	ring->sq_mask = (unsigned *)(sq + params.sq_off.ring_mask);
	ring->sq_array = (unsigned *)(sq + params.sq_off.array);
	ring->cq_head = (unsigned *)(cq + params.cq_off.head);
	ring->cq_tail = (unsigned *)(cq + params.cq_off.tail);
	ring->cq_mask = (unsigned *)(cq + params.cq_off.ring_mask);
	ring->cqes = (struct io_uring_cqe *)(cq + params.cq_off.cqes);
	return true;
}

static int enter(struct ring *ring, unsigned submit, unsigned wait)
{
	unsigned flags = (wait ? IORING_ENTER_GETEVENTS : 0) | (ring->polled ? IORING_ENTER_SQ_WAKEUP : 0);
	long done;

	do
		done = syscall(SYS_io_uring_enter, ring->fd, submit, wait, flags, NULL, 0);
	while (done < 0 && errno == EINTR);
	return done < 0 ? -errno : 0;
}

/* Submits one request; its result, or 0 where it is not waited for. */
static int submit(struct ring *ring, struct io_uring_sqe request, bool wait)
{
	static __u64 number;
	unsigned tail = *ring->sq_tail, at = tail & *ring->sq_mask, head;
	struct io_uring_cqe *done;
	int err;

	request.user_data = ++number;
	ring->sqes[at] = request;
	ring->sq_array[at] = at;
	__atomic_store_n(ring->sq_tail, tail + 1, __ATOMIC_RELEASE);
	err = enter(ring, 1, wait);
	while (!err && wait) {
		head = *ring->cq_head;
		if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE)) {
			err = enter(ring, 0, 1);
			continue;
		}
		done = &ring->cqes[head & *ring->cq_mask];
		err = done->res;
		wait = done->user_data != number;	/* one that was not waited for may be over now */
		__atomic_store_n(ring->cq_head, head + 1, __ATOMIC_RELEASE);
		if (wait)
			err = 0;
	}
	return err;
}

/* The ring for this way, made when it is first asked for; NULL, and the answer has been given, if there is none. */
static struct ring *ring_for(const char *how)
{
	static struct ring rings[2];
	bool polled = !strcmp(how, "poll");
	struct ring *ring = &rings[polled];

	if (ring->sqes || open_ring(ring, polled))
		return ring;
	if (errno == ENOSYS || errno == EPERM)
		fprintf(answers, "cannot this kernel has no io_uring (%s)\n", strerror(errno));
	else
		failed("io_uring_setup()");
	return NULL;
}

/* ---- sockets ---- */

static socklen_t address(struct sockaddr_storage *to, const char *text, int port)
{
	struct sockaddr_in *v4 = (void *)to;
	struct sockaddr_in6 *v6 = (void *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	inet_pton(AF_INET6, text, &v6->sin6_addr);
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static void print_address(const struct sockaddr_storage *from)
{
	const struct sockaddr_in *v4 = (const void *)from;
	const struct sockaddr_in6 *v6 = (const void *)from;
	char text[INET6_ADDRSTRLEN];

	if (from->ss_family == AF_INET)
		fprintf(answers, " %s:%d", inet_ntop(AF_INET, &v4->sin_addr, text, sizeof(text)), ntohs(v4->sin_port));
	else
		fprintf(answers, " [%s]:%d", inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof(text)), ntohs(v6->sin6_port));
}

/* A listener, and who waits for a connection, has no peer: then the second address is the given one. */
static void done_with(int fd, const struct sockaddr_storage *peer)
{
	struct sockaddr_storage local, remote;
	socklen_t size = sizeof(local);

	getsockname(fd, (void *)&local, &size);
	size = sizeof(remote);
	if (getpeername(fd, (void *)&remote, &size))
		remote = peer ? *peer : local;
	fprintf(answers, "done %d", fd);
	print_address(&local);
	print_address(&remote);
	fputc('\n', answers);
}

static void listen_on(const char *text)
{
	struct sockaddr_storage at;
	socklen_t size = address(&at, text, 0);
	int fd = socket(at.ss_family, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (void *)&at, size) || listen(fd, 64))
		failed("listen()");
	else
		done_with(fd, NULL);
}

static void connect_to(const char *text, int port)
{
	struct sockaddr_storage to;
	socklen_t size = address(&to, text, port);
	int fd = socket(to.ss_family, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (void *)&to, size))
		failed("connect()");
	else
		done_with(fd, NULL);
}

static void ask(const char *text, int port)
{
	static struct sockaddr_storage to;	/* the request reads it when it likes */
	struct io_uring_sqe request = { .opcode = IORING_OP_CONNECT, .addr = (__u64)(unsigned long)&to };
	struct ring *ring = ring_for("ring");

	if (!ring)
		return;
	request.off = address(&to, text, port);
	request.fd = socket(to.ss_family, SOCK_STREAM, 0);
	errno = -submit(ring, request, false);
	if (request.fd < 0 || errno)
		failed("asking for a connection");
	else
		done_with(request.fd, &to);
}

static void accept_from(int listener, const char *how)
{
	struct io_uring_sqe request = { .opcode = IORING_OP_ACCEPT, .fd = listener };
	struct ring *ring;
	int fd;

	if (!strcmp(how, "call")) {
		fd = accept(listener, NULL, NULL);
	} else {
		ring = ring_for(how);
		if (!ring)
			return;
		request.flags = strcmp(how, "worker") ? 0 : IOSQE_ASYNC;
		fd = submit(ring, request, true);
		errno = -fd;
	}
	if (fd < 0)
		failed("accept()");
	else
		done_with(fd, NULL);
}

static void send_on(int fd, const char *how)
{
	static const char data[1000];
	struct io_uring_sqe request = { .opcode = IORING_OP_SEND, .fd = fd, .len = sizeof(data) };
	struct ring *ring;
	int sent;

	if (!strcmp(how, "call")) {
		sent = send(fd, data, sizeof(data), 0);
	} else {
		ring = ring_for(how);
		if (!ring)
			return;
		request.addr = (__u64)(unsigned long)data;
		request.flags = strcmp(how, "worker") ? 0 : IOSQE_ASYNC;
		sent = submit(ring, request, true);
		errno = sent < 0 ? -sent : 0;
	}
	if (sent == sizeof(data))
		fputs("done\n", answers);
	else
		failed("send()");
}

/* Keep the caller on the first of its CPUs, or on the last. */
static void stay_on(bool first)
{
	cpu_set_t mine, one;
	int cpu, chosen = -1;

	if (sched_getaffinity(0, sizeof(mine), &mine))
		return;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &mine) && (chosen < 0 || !first))
			chosen = cpu;
	CPU_ZERO(&one);
	CPU_SET(chosen, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

static void wait_for(int *turn, int time)
{
	while (__atomic_load_n(turn, __ATOMIC_ACQUIRE) < time)
		sched_yield();
}

static void contend(int fd, int times)
{
	static const char data[101];
	int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), time, ours = 0;
	pid_t rival;

	if (shared == MAP_FAILED) {
		failed("memory to share");
		return;
	}
	rival = fork();
	if (!rival) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		prctl(PR_SET_NAME, "rival");
		stay_on(false);
		for (time = 1; time <= times; time++) {
			wait_for(&shared[0], 2 * time - 1);
			send(fd, data, 1, 0);
			__atomic_store_n(&shared[1], 2 * time - 1, __ATOMIC_RELEASE);
			wait_for(&shared[0], 2 * time);
			send(fd, data, 101, 0);
			__atomic_store_n(&shared[1], 2 * time, __ATOMIC_RELEASE);
		}
		exit(0);
	}
	stay_on(true);
	for (time = 1; time <= times; time++) {
		__atomic_store_n(&shared[0], 2 * time - 1, __ATOMIC_RELEASE);
		ours += send(fd, data, 1, 0) == 1;
		wait_for(&shared[1], 2 * time - 1);
		ours += send(fd, data, 100, 0) == 100;
		__atomic_store_n(&shared[0], 2 * time, __ATOMIC_RELEASE);
		wait_for(&shared[1], 2 * time);
	}
	if (ours == 2 * times)
		fprintf(answers, "done %d\n", rival);
	else
		failed("send()");
}

static void take(int pid, int theirs)
{
	int process = syscall(SYS_pidfd_open, pid, 0);
	int fd = process < 0 ? -1 : syscall(SYS_pidfd_getfd, process, theirs, 0);

	if (fd < 0 && errno == ENOSYS)
		fputs("cannot this kernel has no pidfd_getfd()\n", answers);
	else if (fd < 0)
		failed("pidfd_getfd()");
	else
		done_with(fd, NULL);
}

/* ---- BPF ---- */

static int bpf(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof(*attr));
}

static int load(enum bpf_prog_type type, enum bpf_attach_type attach, const struct bpf_insn *insns, unsigned count)
{
	union bpf_attr attr = {
		.prog_type = type, .expected_attach_type = attach, .insn_cnt = count,
		.insns = (__u64)(unsigned long)insns, .license = (__u64)(unsigned long)"GPL",
	};

	return bpf(BPF_PROG_LOAD, &attr);
}

static bool set(int map, __u32 key, int fd)
{
	union bpf_attr attr = {
		.map_fd = map, .key = (__u64)(unsigned long)&key, .value = (__u64)(unsigned long)&fd,
	};

	return !bpf(BPF_MAP_UPDATE_ELEM, &attr);
}

/* The first socket of the map gets what the second receives: a worker of the kernel sends it. */
static void forward(int from, int to)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_SOCKMAP, .key_size = 4, .value_size = 4, .max_entries = 2 };
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	/* Before 5.11 maps count as locked memory. Newer kernels need not permit it. */
	int limited = setrlimit(RLIMIT_MEMLOCK, &unlimited), map = bpf(BPF_MAP_CREATE, &attr), program;
	const struct bpf_insn insns[] = {
		{ .code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 2, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map }, { 0 },
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3 },	/* its key */
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 4 },
		{ .code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_sk_redirect_map },
		{ .code = BPF_JMP | BPF_EXIT },
	};

	if (map < 0 && errno == EINVAL) {
		fputs("cannot this kernel has no sockmap\n", answers);
		return;
	}
	program = load(BPF_PROG_TYPE_SK_SKB, BPF_SK_SKB_STREAM_VERDICT, insns, sizeof(insns) / sizeof(insns[0]));
	attr = (union bpf_attr){ .target_fd = map, .attach_bpf_fd = program, .attach_type = BPF_SK_SKB_STREAM_VERDICT };
	if (program < 0 || bpf(BPF_PROG_ATTACH, &attr) || !set(map, 0, to) || !set(map, 1, from))
		failed(limited ? "sockmap (and to raise RLIMIT_MEMLOCK)" : "sockmap");
	else
		fputs("done\n", answers);
}

#define LARGE (1 << 20)

/*
 * While it copies a value, the kernel runs no kprobe's program on that CPU, not in a softirq either
 * (bpf_disable_instrumentation(), trace_call_bpf()). Copying it to the caller is the other half of the time.
 */
static void crowd(void)
{
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = LARGE, .max_entries = 1 };
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	int limited = setrlimit(RLIMIT_MEMLOCK, &unlimited), map = bpf(BPF_MAP_CREATE, &attr);
	long cpus = sysconf(_SC_NPROCESSORS_CONF), cpu;
	char *value = malloc(LARGE);
	__u32 key = 0;
	cpu_set_t one;

	if (map < 0 || !value) {
		failed(limited ? "a map (and to raise RLIMIT_MEMLOCK)" : "a map");
		return;
	}
	attr = (union bpf_attr){
		.map_fd = map, .key = (__u64)(unsigned long)&key, .value = (__u64)(unsigned long)value,
	};
	for (cpu = 0; cpu < cpus && cpu < CPU_SETSIZE; cpu++) {
		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		if (sched_setaffinity(0, sizeof(one), &one))
			exit(1);	/* that one is offline */
		while (!bpf(BPF_MAP_LOOKUP_ELEM, &attr))
			;
		exit(1);
	}
	fputs("done\n", answers);
}

/* ---- processes ---- */

#define CHILDREN 8

static struct child {
	FILE *orders, *answers;
} children[CHILDREN];

static void obey_all(FILE *orders, const char *name);

/* With this PID, or with any where it is 0. */
static pid_t fork_as(pid_t pid)
{
	struct clone_args args = {
		.exit_signal = SIGCHLD, .set_tid = (__u64)(unsigned long)&pid, .set_tid_size = 1,
	};

	return pid ? syscall(SYS_clone3, &args, sizeof(args)) : fork();
}

/* The child's number, and its PID, which may be asked for; -1: there is none. */
static int begin_child(const char *name, pid_t *pid)
{
	int number = 0, down[2], up[2];
	pid_t child;

	while (number < CHILDREN && children[number].orders)
		number++;
	if (number == CHILDREN || pipe(down) || pipe(up))
		return -1;
	child = fork_as(*pid);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(down[1]);
		close(up[0]);
		answers = fdopen(up[1], "w");
		obey_all(fdopen(down[0], "r"), name);
		exit(0);
	}
	close(down[0]);
	close(up[1]);
	if (child < 0) {
		close(down[1]);
		close(up[0]);
		return -1;
	}
	*pid = child;
	children[number] = (struct child){ fdopen(down[1], "w"), fdopen(up[0], "r") };
	return number;
}

static void end_child(int number, pid_t pid)
{
	fclose(children[number].orders);
	fclose(children[number].answers);
	children[number] = (struct child){ NULL, NULL };
	waitpid(pid, NULL, 0);
}

static void introduce(int number)
{
	char line[64];
	int pid;

	if (!fgets(line, sizeof(line), children[number].answers) || sscanf(line, "done %d", &pid) != 1)
		failed("a child's first words");
	else
		fprintf(answers, "done %d %d\n", number, pid);
}

static void fork_one(const char *name)
{
	pid_t pid = 0;
	int number = begin_child(name, &pid);

	if (number < 0)
		failed("fork()");
	else
		introduce(number);
}

/* The clock tick in which a process started, as /proc tells it, also while nobody has waited for it; -1: it does not. */
static long long tick_of(pid_t pid)
{
	char path[32], text[1024] = "", *at;
	long long tick = -1;
	FILE *stat;
	int field;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	stat = fopen(path, "r");
	if (!stat)
		return -1;
	text[fread(text, 1, sizeof(text) - 1, stat)] = 0;
	fclose(stat);
	at = strrchr(text, ')');
	for (field = 2; at && field < 22; field++)	/* from the name to the start */
		at = strchr(at + 1, ' ');
	if (at)
		sscanf(at, "%lld", &tick);
	return tick;
}

static void succeed(int fd, const char *first, const char *second)
{
	long long tick = -1;
	int tries, number;
	siginfo_t ended;
	pid_t pid;

	for (tries = 0; tries < 500; tries++) {
		pid = fork();
		if (!pid) {
			prctl(PR_SET_NAME, first);
			_exit(send(fd, "", 1, 0) != 1);
		}
		if (waitid(P_PID, pid, &ended, WEXITED | WNOWAIT) || ended.si_status)
			break;
		tick = tick_of(pid);
		waitpid(pid, NULL, 0);
		number = begin_child(second, &pid);
		if (number < 0 && errno != EEXIST)
			break;
		if (number >= 0 && tick_of(pid) == tick) {
			introduce(number);
			return;
		}
		if (number >= 0)
			end_child(number, pid);
	}
	failed("a child within the tick of the one before it");
}

static void have_child(int number, const char *order)
{
	struct child *child = number >= 0 && number < CHILDREN ? &children[number] : NULL;
	char line[300];

	if (!child || !child->orders) {
		failed("no such child");
		return;
	}
	fprintf(child->orders, "%s\n", order);
	fflush(child->orders);
	if (fgets(line, sizeof(line), child->answers))
		fputs(line, answers);
	else
		failed("the child has ended");
}

/* This program once more, with its sockets and under that name; it says "done PID" then. */
static void *begin_again(void *name)
{
	execl("/proc/self/exe", "ways", name, NULL);
	failed("exec()");
	return NULL;
}

static void rename_to(const char *how, char *name)
{
	pthread_t thread;

	if (!strcmp(how, "exec")) {
		begin_again(name);
	} else if (!strcmp(how, "thread")) {
		errno = pthread_create(&thread, NULL, begin_again, name);
		if (!errno)
			pthread_join(thread, NULL);
		else
			failed("a thread");
	} else {
		prctl(PR_SET_NAME, name);
		fputs("done\n", answers);
	}
}

/* As if an ACK had said so. The peer's next ACK says otherwise. */
static void close_window(int fd)
{
	int repair = 1, repaired = -1;	/* TCP_REPAIR_ON, TCP_REPAIR_OFF_NO_WP: sends nothing */
	struct tcp_repair_window window;
	socklen_t size = sizeof(window);
	bool done = !setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, sizeof(repair)) &&
		    !getsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, &size);

	window.snd_wnd = 0;
	if (!done || setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_WINDOW, &window, size) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repaired, sizeof(repaired)))
		failed("setting TCP_REPAIR_WINDOW");
	else
		fputs("done\n", answers);
}

/* ---- traffic in the background, and what the kernel tells the process about it ---- */

struct flow {
	int fd;
	size_t bytes, size;
	useconds_t pause;
};

static void *pour(void *of)
{
	struct flow *flow = of;
	char *data = calloc(1, flow->size);

	while (flow->bytes) {
		ssize_t sent = send(flow->fd, data, flow->size < flow->bytes ? flow->size : flow->bytes, MSG_NOSIGNAL);

		if (sent <= 0)
			break;
		flow->bytes -= sent;
	}
	return NULL;
}

static void *drain(void *of)
{
	struct flow *flow = of;
	char *data = malloc(flow->size);

	while (read(flow->fd, data, flow->size) > 0)
		if (flow->pause)
			usleep(flow->pause);
	return NULL;
}

static void in_background(void *(*what)(void *), struct flow flow)
{
	struct flow *own = malloc(sizeof(*own));
	pthread_t thread;

	*own = flow;
	errno = pthread_create(&thread, NULL, what, own);
	if (errno)
		return failed("pthread_create()");
	fputs("done\n", answers);
}

static bool print_option(int fd, int level, int option)
{
	unsigned char bytes[512];
	socklen_t size = sizeof(bytes);

	if (getsockopt(fd, level, option, bytes, &size))
		return false;
	fputc(' ', answers);
	for (socklen_t at = 0; at < size; at++)
		fprintf(answers, "%02x", bytes[at]);
	return true;
}

static void tell_tcp_info(int fd)
{
	fputs("done", answers);
	if (!print_option(fd, IPPROTO_TCP, TCP_INFO) || !print_option(fd, SOL_SOCKET, SO_MEMINFO))
		failed("getsockopt()");
	else
		fputc('\n', answers);
}

static void obey(const char *order)
{
	char word[64] = "", name[64] = "";
	int third, number, other, rest = 0;

	if (sscanf(order, "listen %63s", word) == 1)
		listen_on(word);
	else if (sscanf(order, "connect %63s %d", word, &number) == 2)
		connect_to(word, number);
	else if (sscanf(order, "ask %63s %d", word, &number) == 2)
		ask(word, number);
	else if (sscanf(order, "accept %d %63s", &number, word) == 2)
		accept_from(number, word);
	else if (sscanf(order, "send %d %63s", &number, word) == 2)
		send_on(number, word);
	else if (sscanf(order, "contend %d %d", &number, &other) == 2)
		contend(number, other);
	else if (sscanf(order, "shutdown %d", &number) == 1)
		shutdown(number, SHUT_WR) ? failed("shutdown()") : (void)fputs("done\n", answers);
	else if (sscanf(order, "no_window %d", &number) == 1)
		close_window(number);
	else if (sscanf(order, "pour %d %d %d", &number, &other, &third) == 3)
		in_background(pour, (struct flow){ .fd = number, .bytes = other, .size = third });
	else if (sscanf(order, "drain %d %d %d", &number, &other, &third) == 3)
		in_background(drain, (struct flow){ .fd = number, .size = other, .pause = third * 1000 });
	else if (sscanf(order, "tcp_info %d", &number) == 1)
		tell_tcp_info(number);
	else if (sscanf(order, "take %d %d", &number, &other) == 2)
		take(number, other);
	else if (sscanf(order, "forward %d %d", &number, &other) == 2)
		forward(number, other);
	else if (!strcmp(order, "crowd"))
		crowd();
	else if (sscanf(order, "fork %63s", word) == 1)
		fork_one(word);
	else if (sscanf(order, "succeed %d %63s %63s", &number, word, name) == 3)
		succeed(number, word, name);
	else if (sscanf(order, "rename %63s %63s", word, name) == 2)
		rename_to(word, name);
	else if (sscanf(order, "child %d %n", &number, &rest) == 1 && rest)
		have_child(number, order + rest);
	else
		fprintf(answers, "failed I was told %s\n", order);
}

static void obey_all(FILE *orders, const char *name)
{
	char line[300];

	prctl(PR_SET_NAME, name);
	fprintf(answers, "done %d\n", getpid());
	fflush(answers);
	while (fgets(line, sizeof(line), orders)) {
		line[strcspn(line, "\n")] = 0;
		errno = 0;
		obey(line);
		fflush(answers);
	}
}

static int to_trace(char **program)
{
	struct sock_filter insns[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_bpf, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_perf_event_open, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
	};
	struct sock_fprog filter = { sizeof(insns) / sizeof(*insns), insns };
	cpu_set_t here;
	char byte = 0;

	/* what follows the line is the program's to read */
	while (byte != '\n')
		if (read(STDIN_FILENO, &byte, 1) != 1)
			return 1;
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	if (sched_setaffinity(0, sizeof(here), &here))
		perror("sched_setaffinity");
	else if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		perror("prctl(PR_SET_SECCOMP)");
	else if (execvp(program[0], program))
		perror(program[0]);
	return 1;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "to-trace"))
		return to_trace(argv + 2);
	answers = stdout;
	obey_all(stdin, argc > 1 ? argv[1] : "ways");
	return 0;
}
