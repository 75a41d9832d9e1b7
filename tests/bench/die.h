/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef XCTL_BENCH_DIE_H
#define XCTL_BENCH_DIE_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends a benchmark that cannot measure: exit code 1 says that a budget was exceeded, 2 that there is no result. */
static void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(2);
}

#endif
