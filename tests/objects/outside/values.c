/* Initial values of maps that point elsewhere than libbpf lets them: one for each macro that tests/relocations/ defines. */
#include "../core.h"

#define UINT(name, number) int (*name)[number]
#define MAP SEC(".maps")

PROGRAM(program, 1)

int number;

struct inner {
	UINT(type, 2); UINT(max_entries, 1); int *key; int *value;
} one MAP;

#ifdef two_maps
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP = { .values = { &one, &one } };
#endif
#ifdef a_variable_for_a_map
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP = { .values = { &one, (struct inner *)&number } };
#endif
#ifdef a_program_for_a_map
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP = { .values = { &one, (struct inner *)program } };
#endif
#ifdef a_map_for_a_program
struct {
	UINT(type, 3); UINT(max_entries, 4); int *key; long (*values[])(void *);
} two MAP = { .values = { program, (long (*)(void *))&one } };
#endif
