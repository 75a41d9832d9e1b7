/* Maps, programs and helpers that a kernel may not have: one for each macro that tests/relocations/ defines. */
#include "../core.h"

#define NUMBER(name, value) int (*name)[value]
#define ONE(type_, key, value, entries, flags) \
	struct { \
		NUMBER(type, type_); \
		NUMBER(key_size, key); \
		NUMBER(value_size, value); \
		NUMBER(max_entries, entries); \
		NUMBER(map_flags, flags); \
	}

#if defined(plain)
ONE(2, 4, 8, 1, 0) one SEC(".maps");
#elif defined(long_array_keys)
ONE(2, 8, 8, 1, 0) one SEC(".maps");
#elif defined(programs_by_long)
ONE(3, 4, 8, 1, 0) one SEC(".maps");
#elif defined(queue_with_keys)
ONE(22, 4, 8, 1, 0) one SEC(".maps");
#elif defined(ring_with_values)
ONE(27, 0, 4, 4096, 0) one SEC(".maps");
#elif defined(odd_ring)
ONE(27, 0, 0, 5000, 0) one SEC(".maps");
#elif defined(endless_ring)
ONE(27, 0, 0, 3000000000, 0) one SEC(".maps");
#elif defined(trie_made_before)
ONE(11, 8, 8, 1, 0) one SEC(".maps");
#elif defined(unknown_flag)
ONE(1, 4, 8, 1, 1 << 26) one SEC(".maps");
#elif defined(unknown_type)
ONE(99, 4, 8, 1, 0) one SEC(".maps");
#elif defined(newer_map)
ONE(30, 0, 8, 1, 0) one SEC(".maps");
#elif defined(storage_of_many)
struct {
	NUMBER(type, 24);
	NUMBER(max_entries, 5);
	NUMBER(map_flags, 1);
	int *key;
	long *value;
} one SEC(".maps");
#elif defined(inner_unknown)
struct {
	NUMBER(type, 12);
	NUMBER(key_size, 4);
	NUMBER(max_entries, 1);
	ONE(2, 8, 8, 1, 0) *values[];
} one SEC(".maps");
#endif

#if defined(newer_helper)
static long (*loop)(int count, void *each, void *context, long flags) = (void *)181;

static long each(int index, void *context)
{
	return 0;
}

SEC("socket") long program(void *context)
{
	return loop(1, each, 0, 0);
}
#elif defined(newer_program)
SEC("netfilter") long program(void *context)
{
	return 1;
}
#else
SEC("socket") long program(void *context)
{
	return 0;
}
#endif
