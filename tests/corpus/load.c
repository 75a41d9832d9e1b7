// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * What libbpf does with objects: load OBJECT...
 *
 * Opens and loads each object, with the programs that are loaded by default, and closes it; nothing is attached or pinned. The
 * object is loaded again without a program that failed, or with a size for a map that has none, so that one failure does not
 * hide another. Prints a JSON line an object:
 *
 *   {"object": path, "failures": [{"step": "open"|"load", "program": name or null, "said": libbpf's warnings, and ours}]}
 */
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#define MOST_FAILURES 64
#define NAME_SIZE 256
#define TIMEOUT_S 30
#define HEAD 3000	/* bytes of the warnings that are told, from their beginning and from their end */
#define TAIL 3000

/* The warnings since the last failure; between their beginning and their end a long verifier log is left out. */
static char said[HEAD + TAIL + 1];
static size_t said_len;

static void keep(const char *format, va_list args)
{
	char *text;
	int len = vasprintf(&text, format, args);

	for (int i = 0; i < len; i++) {
		if (said_len == HEAD + TAIL) {
			memmove(said + HEAD, said + HEAD + 1, TAIL - 1);
			said_len--;
		}
		said[said_len++] = text[i];
	}
	if (len >= 0)
		free(text);
}

static int listen(enum libbpf_print_level level, const char *format, va_list args)
{
	if (level == LIBBPF_WARN)
		keep(format, args);
	return 0;
}

/* What the warnings do not say, in a line among them. */
static void __attribute__((format(printf, 1, 2))) note(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	keep(format, args);
	va_end(args);
}

static void put_string(const char *text, size_t len)
{
	putchar('"');
	for (size_t i = 0; i < len; i++) {
		unsigned char byte = text[i];

		if (byte == '"' || byte == '\\')
			printf("\\%c", byte);
		else if (byte < 0x20 || byte >= 0x7f)
			printf("\\u%04x", byte);
		else
			putchar(byte);
	}
	putchar('"');
}

static int failures;

static void put_failure(const char *step, const char *program)
{
	printf("%s{\"step\": \"%s\", \"program\": ", failures++ ? ", " : "", step);
	if (program)
		put_string(program, strlen(program));
	else
		printf("null");
	printf(", \"said\": ");
	put_string(said, said_len);
	putchar('}');
	said_len = 0;
}

/* What libbpf gave up at: its warnings name it between BEFORE and AFTER, for the last time. */
static bool named(const char *before, const char *after, char name[NAME_SIZE])
{
	const char *at = said, *end;
	bool found = false;

	said[said_len] = 0;
	while ((at = strstr(at, before))) {
		at += strlen(before);
		end = strchr(at, '\'');
		if (end && end - at < NAME_SIZE && !strncmp(end + 1, after, strlen(after))) {
			sprintf(name, "%.*s", (int)(end - at), at);
			found = true;
		}
	}
	return found;
}

/* What is changed for the next try. */
struct changes {
	char programs[MOST_FAILURES][NAME_SIZE]; /* are left out */
	char maps[MOST_FAILURES][NAME_SIZE]; /* get the sizes that the object leaves to its loader */
	int program_count, map_count;
};

/* Returns whether the object leaves a size to its loader. */
static bool set_sizes(struct bpf_map *map)
{
	bool changed = false;

	if (!bpf_map__max_entries(map)) {
		note("max_entries of map '%s' is left to the loader\n", bpf_map__name(map));
		bpf_map__set_max_entries(map, 1);
		changed = true;
	}
	if (!bpf_map__value_size(map)) {
		note("value_size of map '%s' is left to the loader\n", bpf_map__name(map));
		bpf_map__set_value_size(map, sizeof(__u64));
		changed = true;
	}
	return changed;
}

static void change(struct bpf_object *object, const struct changes *changes)
{
	struct bpf_program *program;
	struct bpf_map *map;

	bpf_object__for_each_map(map, object) {
		if (bpf_map__pin_path(map))
			bpf_map__set_pin_path(map, NULL);
		for (int i = 0; i < changes->map_count; i++)
			if (!strcmp(bpf_map__name(map), changes->maps[i]))
				set_sizes(map);
	}
	bpf_object__for_each_program(program, object)
		for (int i = 0; i < changes->program_count; i++)
			if (!strcmp(bpf_program__name(program), changes->programs[i]))
				bpf_program__set_autoload(program, false);
}

/* Opens and loads the object. Returns whether it must be tried again with one change more. */
static bool open_and_load(const char *path, struct changes *changes)
{
	char *program_name = changes->programs[changes->program_count], *map_name = changes->maps[changes->map_count];
	struct bpf_object *object = bpf_object__open_file(path, NULL);
	struct bpf_program *program = NULL;
	struct bpf_map *map = NULL;
	bool again = false;

	if (!object) {
		put_failure("open", NULL);
		return false;
	}
	change(object, changes);
	said_len = 0; /* libbpf warns of what it does without, too */
	if (bpf_object__load(object)) {
		if (named("libbpf: prog '", ": failed to load: ", program_name))
			program = bpf_object__find_program_by_name(object, program_name);
		else if (named("libbpf: map '", ": failed to create: ", map_name))
			map = bpf_object__find_map_by_name(object, map_name);
		if (program) {
			note("prog '%s' has type %s, attach type %s\n", program_name, libbpf_bpf_prog_type_str(bpf_program__type(program)),
			     libbpf_bpf_attach_type_str(bpf_program__expected_attach_type(program)));
			changes->program_count++;
			again = true;
		} else if (map) {
			again = set_sizes(map);
			changes->map_count++;
		}
		put_failure("load", program ? program_name : NULL);
	}
	bpf_object__close(object);
	return again;
}

static void try(const char *path)
{
	static struct changes changes;

	libbpf_set_print(listen);
	printf("{\"object\": ");
	put_string(path, strlen(path));
	printf(", \"failures\": [");
	while (changes.program_count < MOST_FAILURES && changes.map_count < MOST_FAILURES && open_and_load(path, &changes))
		;
	printf("]}\n");
	fflush(stdout);
}

/* Each in a process of its own: what one leaves behind is no matter to the next. */
int main(int argc, char **argv)
{
	int status, failed = 0;
	pid_t pid;

	if (argc == 2 && !strcmp(argv[1], "--version")) {
		puts(libbpf_version_string());
		return 0;
	}
	for (int i = 1; i < argc; i++) {
		pid = fork();
		if (!pid) {
			alarm(TIMEOUT_S);
			try(argv[i]);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) < 0 || status) {
			fprintf(stderr, "load: %s: libbpf did not come to an end\n", argv[i]);
			failed = 1;
		}
	}
	return failed;
}
