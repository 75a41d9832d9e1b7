/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Processes that send over loopback, each on one CPU and with its own connections, of which it holds both ends.
 *
 * The receiving end is read after each batch of sends, outside the time: so no send blocks, wakes anyone, or waits for an ACK.
 */
#ifndef XCTL_BENCH_SENDERS_H
#define XCTL_BENCH_SENDERS_H

#include <stdbool.h>
#include <sys/resource.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include "median.h"
#include "workers.h"

#define MESSAGE 64	/* bytes */
#define BATCH 10	/* sends that are timed together: most batches have no interrupt of the timer in them */
#define FEW 1000	/* the least sends of an order without a time */
#define BATCHES (1 << 17)
#define HERE 1000	/* connections of a sender on each CPU */
#define CROWD 64	/* the most senders of a crowd */
#define SPARE_FILES 200	/* of a sender: what it inherits, and its listener */
#define AN_ADDRESS 20000	/* connections to one address: its ports are 28,000 */

/* A connection over loopback. A close resets it, so that no port stays in TIME_WAIT. */
static inline void connect_one(int listener, const struct sockaddr_in *at, int *ours, int *theirs)
{
	struct linger reset = { .l_onoff = 1 };
	int one = 1;

	*ours = socket(AF_INET, SOCK_STREAM, 0);
	if (*ours < 0 || connect(*ours, (const void *)at, sizeof(*at)))
		die("cannot connect");
	*theirs = accept(listener, NULL, NULL);
	if (*theirs < 0)
		die("cannot accept");
	setsockopt(*ours, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(*ours, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
}

static int *ours, *theirs, opened;

static inline void open_up_to(int wanted)
{
	struct sockaddr_in at;
	socklen_t len = sizeof(at);
	int listener = -1;

	ours = realloc(ours, wanted * sizeof(*ours));
	theirs = realloc(theirs, wanted * sizeof(*theirs));
	if (!ours || !theirs)
		die("memory");
	for (int i = 0; opened < wanted; i++, opened++) {
		if (i % AN_ADDRESS == 0) {
			close(listener);
			at = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + i / AN_ADDRESS) };
			listener = socket(AF_INET, SOCK_STREAM, 0);
			if (bind(listener, (void *)&at, len) || listen(listener, 16) || getsockname(listener, (void *)&at, &len))
				die("cannot listen");
		}
		connect_one(listener, &at, &ours[opened], &theirs[opened]);
	}
	close(listener);
}

/* Opens connections, or sends in batches and returns the median time, in ns a send. */
static inline double send_in_turn(const struct order *order)
{
	static char bytes[1 << 16];
	static double batches[BATCHES];
	int sends = order->used < FEW ? FEW : order->used, next = 0, count = 0;

	if (order->open) {
		open_up_to(order->open);
		return 0;
	}
	for (int sent = 0; order->begin ? now() < order->end : sent < sends; sent += BATCH) {
		int unread = next;
		long long began = now();

		for (int i = 0; i < BATCH; i++) {
			if (send(ours[next], bytes, MESSAGE, 0) != MESSAGE)
				die("send");
			next = next + 1 < order->used ? next + 1 : 0;
		}
		if (count < BATCHES)
			batches[count++] = (double)(now() - began) / BATCH;
		for (int i = 0; i < BATCH && i < order->used; i++) {
			while (recv(theirs[unread], bytes, sizeof(bytes), MSG_DONTWAIT) == sizeof(bytes))
				;
			unread = unread + 1 < order->used ? unread + 1 : 0;
		}
	}
	return count ? median(batches, count) : 0;
}

/* Starts a sender on each CPU. Returns their number. */
static inline int start_senders(int *senders)
{
	const struct order order = { .open = HERE };
	int count = start_on_each_cpu(send_in_turn, senders);

	tell(senders, count, &order);
	return count;
}

/* One after the other, on one CPU, so that all connections send in turn. */
struct crowd {
	int senders[CROWD];
	int count;
	int connections;	/* of each sender */
};

/*
 * Starts senders on one CPU that together have so many connections. A process may not open that many files everywhere. Returns false
 * if even the most senders do not suffice.
 */
static inline bool start_crowd(struct crowd *crowd, int connections)
{
	struct order order = { 0 };
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files))
		die("getrlimit");
	crowd->count = 1 + (2L * connections - 1) / ((long)files.rlim_cur - SPARE_FILES);
	if ((long)files.rlim_cur <= SPARE_FILES || crowd->count > CROWD)
		return false;
	crowd->connections = order.open = connections / crowd->count;
	for (int i = 0; i < crowd->count; i++) {
		crowd->senders[i] = start_worker(cpu_from(0), send_in_turn);
		tell(&crowd->senders[i], 1, &order);
	}
	return true;
}

/* Each connection sends once. Returns ns a send. */
static inline double send_once(const struct crowd *crowd)
{
	struct order order = { .used = crowd->connections };
	double sum = 0;

	for (int i = 0; i < crowd->count; i++)
		sum += tell(&crowd->senders[i], 1, &order);
	return sum / crowd->count;
}

/* Raises the limit of open files as far as that is allowed. */
static inline void raise_files(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files))
		die("getrlimit");
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
}

#endif
