/* SPDX-License-Identifier: MIT OR Apache-2.0 */
#ifndef XCTL_BENCH_MEDIAN_H
#define XCTL_BENCH_MEDIAN_H

#include <stdlib.h>

static int in_order(const void *one, const void *two)
{
	double a = *(const double *)one, b = *(const double *)two;

	return (a > b) - (a < b);
}

/* Sorts the figures. */
static double median(double *of, int count)
{
	qsort(of, count, sizeof(*of), in_order);
	return (of[(count - 1) / 2] + of[count / 2]) / 2;
}

#endif
