/* Functions that programs call, a map, variables: what libbpf puts behind and into a program besides CO-RE. */
#include "core.h"

#ifdef TARGET

struct one {
	int other;
	int a;
};
HAS(a, struct one);

#else

struct one {
	int a;
} RELOCATED;

struct {
	int (*type)[1];
	int (*max_entries)[4];
	long *key;
	long *value;
} map SEC(".maps");

static long counter;
static volatile const long setting = 7;

static void *(*lookup)(void *map, const void *key) = (void *)1;
static long (*for_each)(void *map, void *callback, void *context, long flags) = (void *)164;

static __attribute__((noinline)) long last(long x)
{
	counter += x;
	return counter + setting;
}

static __attribute__((noinline)) long middle(long x)
{
	long key = x;
	long *value = lookup(&map, &key);

	return value ? last(*value) : last(x) * 3;
}

static long callback(void *map, const void *key, void *value, void *context)
{
	return *(long *)value == setting;
}

SEC("socket") long calling(struct one *p) // 4
{
	return middle(p->a) + last(setting);
}

SEC("socket") long calling_in_another_order(struct one *p) // 4
{
	return last(p->a) + middle(counter) + for_each(&map, callback, 0, 0);
}

#endif
