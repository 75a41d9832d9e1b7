/* Definitions of maps that libbpf takes or not: one for each macro that tests/relocations/ defines. */
#include "../core.h"

#define UINT(name, number) int (*name)[number]
#define ARRAY UINT(type, 2); UINT(max_entries, 1); int *key; int *value
#define MAP SEC(".maps")

PROGRAM(program, 1)

__attribute__((noinline)) long function(void *context)
{
	return 0;
}

struct inner {
	ARRAY;
} one MAP;

#ifdef is_static
static struct inner two MAP;

SEC("socket") long other(void *context)
{
	return (long)&two;
}
#endif
#ifdef is_hidden
__attribute__((visibility("hidden"))) struct inner two MAP;
#endif
#ifdef is_weak
__attribute__((weak)) struct inner two MAP;
#endif
#ifdef programs
struct {
	UINT(type, 3); UINT(max_entries, 4); int *key; long (*values[])(void *);
} two MAP = { .values = { [1] = program } };
#endif
#ifdef not_a_program
struct {
	UINT(type, 3); UINT(max_entries, 4); int *key; long (*values[])(void *);
} two MAP = { .values = { [1] = function } };
#endif
#ifdef structs_for_programs
struct {
	UINT(type, 3); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP;
#endif
#ifdef maps_in_array
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP = { .values = { [2] = &one } };
#endif
#ifdef maps_by_long
struct {
	UINT(type, 13); UINT(max_entries, 4); long *key; struct inner *values[];
} two MAP = { .values = { &one } };
#endif
#ifdef maps_by_long_later
struct {
	UINT(type, 13); UINT(max_entries, 4); long *key; struct inner *values[];
} two MAP;
#endif
#ifdef functions_for_maps
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; long (*values[])(void *);
} two MAP;
#endif
#ifdef pinned_inside
struct pinned {
	ARRAY; UINT(pinning, 1);
};
struct {
	UINT(type, 12); UINT(max_entries, 4); int *key; struct pinned *values[];
} two MAP;
#endif
#ifdef pinned_somehow
struct {
	ARRAY; UINT(pinning, 2);
} two MAP;
#endif
#ifdef values_in_hash
struct {
	UINT(type, 1); UINT(max_entries, 4); int *key; struct inner *values[];
} two MAP;
#endif
#ifdef values_first
struct {
	UINT(type, 12); struct inner *values[0]; UINT(max_entries, 4); int *key;
} two MAP;
#endif
#ifdef key_is_set
int number;
struct {
	UINT(type, 2); UINT(max_entries, 1); int *key; int *value;
} two MAP = { .key = &number };
#endif
