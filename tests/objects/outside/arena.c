/* Variables in an arena, as libbpf takes them or not: one for each macro that tests/relocations/ defines. */
#include "../core.h"

#define ARENA(name, pages)                                                                          \
	struct {                                                                                    \
		int (*type)[33];                                                                    \
		int (*map_flags)[1 << 10];                                                          \
		int (*max_entries)[pages];                                                          \
	} name SEC(".maps")

#ifndef without_maps
struct {
	int (*type)[2];
	int (*max_entries)[1];
	int *key;
	int *value;
} array SEC(".maps");
#endif

#ifdef too_small
ARENA(arena, 1);
#elif !defined(without) && !defined(without_maps)
ARENA(arena, 10);
#endif
#ifdef two
ARENA(other, 10);
#endif

#ifndef empty
SEC(".addr_space.1") int in_arena = 5;
SEC(".addr_space.1") char large[5000] = {1};
#endif

PROGRAM(program, 1)
