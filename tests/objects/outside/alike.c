/*
 * Names that tell nothing: tests/relocations/alike.rs links two of these parts, as two files of a project, and asks libbpf for
 * the truth. The target has no member `gone`.
 */
#include "../core.h"

#ifdef TARGET
struct one {
	int other;
	int b;
	int a;
};
HAS(one, struct one);
#endif

#ifdef FIRST
struct one {
	int b;
} RELOCATED;

static volatile int count = 1;

static __attribute__((noinline)) long takes(struct one *p)
{
	return p->b + count;
}

SEC("socket") long first(struct one *p)
{
	return takes(p) + p->b;
}
#endif

#ifdef SECOND
struct one {
	int a;
	int gone;
} RELOCATED;

static volatile long count = 2;

static __attribute__((noinline)) long takes(struct one *p)
{
	return p->gone + count;
}

SEC("socket") long second(struct one *p)
{
	return takes(p) + p->a;
}

SEC("socket") long third(struct one *p)
{
	return p->a;
}
#endif

#ifdef NAMESAKE
SEC("socket") long takes(void *context)
{
	return 0;
}
#endif

/* Addresses in variables, which libbpf does not relocate. */
#ifdef POINTERS
const char *const names[] = {"zero", "one"};
int numbers[] = {7, 8, 9};
int *second_number = &numbers[1];

SEC("socket") long program(void *context)
{
	return (long)second_number + (long)*(const char *const volatile *)&names[1];
}
#endif
