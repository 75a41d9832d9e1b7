/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Processes that do something on a CPU each, when they are told to, all at the same time. */
#ifndef XCTL_BENCH_WORKERS_H
#define XCTL_BENCH_WORKERS_H

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "die.h"

#define MOST_CPUS 64

struct order {
	long long begin, end;	/* CLOCK_MONOTONIC_RAW, ns; 0: a fixed amount of work */
	int open;		/* only have so many connections then, if that is not 0 */
	int used;		/* use so many of them in turn */
};

/* Returns the figure that it has measured. */
typedef double work(const struct order *);

static inline long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_RAW, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static inline void obey(int talk, int cpu, work *work)
{
	struct order order;
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("cannot stay on one CPU");
	while (read(talk, &order, sizeof(order)) == sizeof(order)) {
		double result;

		while (order.begin && now() < order.begin)
			;
		result = work(&order);
		if (write(talk, &result, sizeof(result)) != sizeof(result))
			break;
	}
}

/* Starts a process on this CPU. Returns a socket that takes orders. The process ends with this one. */
static inline int start_worker(int cpu, work *work)
{
	int talk[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, talk))
		die("socketpair");
	if (!fork()) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(talk[0]);
		obey(talk[1], cpu, work);
		_exit(0);
	}
	close(talk[1]);
	return talk[0];
}

/* The first CPU from `cpu` on that this process may use, or CPU_SETSIZE. */
static inline int cpu_from(int cpu)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		die("sched_getaffinity");
	while (cpu < CPU_SETSIZE && !CPU_ISSET(cpu, &set))
		cpu++;
	return cpu;
}

/* Starts a worker on each CPU that this process may use. Returns their number. */
static inline int start_on_each_cpu(work *work, int *workers)
{
	int count = 0;

	for (int cpu = cpu_from(0); cpu < CPU_SETSIZE && count < MOST_CPUS; cpu = cpu_from(cpu + 1))
		workers[count++] = start_worker(cpu, work);
	return count;
}

/* The workers do this at the same time. Returns the mean of their medians. */
static inline double tell(const int *workers, int count, const struct order *order)
{
	double sum = 0, result;

	for (int i = 0; i < count; i++)
		if (write(workers[i], order, sizeof(*order)) != sizeof(*order))
			die("a worker has ended");
	for (int i = 0; i < count; i++) {
		if (read(workers[i], &result, sizeof(result)) != sizeof(result))
			die("a worker has ended");
		sum += result;
	}
	return sum / count;
}

/* The workers work at the same time for so long. Returns the mean of their figures. */
static inline double tell_for(const int *workers, int count, int used, long long ns)
{
	struct order order = { .used = used, .begin = now() + 1000000 };

	order.end = order.begin + ns;
	return tell(workers, count, &order);
}

#endif
