/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* A row of the table that `make bench` prints: a figure of xctl beside that of its rival in the same run. */
#ifndef XCTL_BENCH_ROW_H
#define XCTL_BENCH_ROW_H

#include "die.h"

/*
 * Adds a row to the file that BENCH_ROWS names, as a JSON line; without that variable it does nothing. `rival` is NULL if there
 * is no rival, and `budget` is below 0 if there is no budget. The budget is the most that the ratio to the rival may be, or the
 * figure itself if there is no rival.
 */
static void add_row(const char *what, const char *unit, double xctl, const char *rival, double rivals, double budget)
{
	const char *path = getenv("BENCH_ROWS");
	FILE *rows;

	if (!path)
		return;
	rows = fopen(path, "a");
	if (!rows)
		die(path);
	fprintf(rows, "{\"what\":\"%s\",\"unit\":\"%s\",\"xctl\":%.3f", what, unit, xctl);
	if (rival)
		fprintf(rows, ",\"rival\":\"%s\",\"rivals\":%.3f,\"ratio\":%.3f", rival, rivals, rivals > 0 ? xctl / rivals : 0);
	if (budget >= 0)
		fprintf(rows, ",\"budget\":%.3f", budget);
	fprintf(rows, "}\n");
	if (fclose(rows))
		die(path);
}

#endif
