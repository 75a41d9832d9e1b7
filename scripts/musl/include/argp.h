/*
 * As much of <argp.h>, which musl does not have, as elfutils' libeu needs to compile. Nothing of libeu that parses
 * arguments is linked.
 */
#ifndef _ARGP_H
#define _ARGP_H

#include <errno.h>
#include <stdio.h>

typedef int error_t;

struct argp_state {
	char *name;
};

struct argp_option {
	const char *name;
	int key;
	const char *arg;
	int flags;
	const char *doc;
	int group;
};

struct argp {
	const struct argp_option *options;
	error_t (*parser)(int key, char *arg, struct argp_state *state);
	const char *args_doc;
	const char *doc;
	const void *children;
	char *(*help_filter)(int key, const char *text, void *input);
	const char *argp_domain;
};

#define OPTION_ARG_OPTIONAL	1
#define OPTION_HIDDEN		2
#define ARGP_ERR_UNKNOWN	E2BIG
#define ARGP_HELP_SEE		4

void argp_help(const struct argp *argp, FILE *stream, unsigned int flags, char *name);

#endif
