/*
 * Objects that load, and others that do not, for reasons around their relocations: one for each macro that
 * tests/relocations.rs defines. The target has no member `a`; so what takes it must not be reached.
 */
#include "../core.h"

struct one {
#ifdef TARGET
	int other;
#else
	int a;
#endif
} RELOCATED;

#ifdef TARGET

HAS(one, struct one);
struct two {
	int x;
};
struct two___other {
	int y, x;
};
HAS(two_, struct two);
HAS(two_other, struct two___other);

#else

struct two {
	int x;
} RELOCATED;

static __attribute__((noinline)) long takes(struct one *p)
{
	return p->a;
}

#ifdef guarded_call
SEC("socket") long program(struct one *p)
{
	return exists(struct one, a) ? takes(p) : 0;
}
#endif

#ifdef call
SEC("socket") long program(struct one *p)
{
	return takes(p);
}
#endif

#ifdef nested_call
static __attribute__((noinline)) long calls(struct one *p)
{
	return takes(p) + 1;
}

SEC("socket") long program(struct one *p)
{
	return calls(p);
}
#endif

/* Kernels before 6.8 verify it whoever calls it. */
#ifdef guarded_global_call
__attribute__((noinline)) long everybodys(long x)
{
	struct one *p = (struct one *)x;

	return exists(struct one, a) ? 0 : p->a;
}

SEC("socket") long program(struct one *p)
{
	return exists(struct one, a) ? everybodys(1) : 0;
}
#endif

#if defined(callback) || defined(guarded_callback)
static long (*loop)(int count, void *each, void *context, long flags) = (void *)181;

static long each(int index, void *context)
{
	return ((struct one *)context)->a;
}

SEC("socket") long program(struct one *p)
{
#ifdef guarded_callback
	if (!exists(struct one, a))
		return 0;
#endif
	return loop(1, each, 0, 0);
}
#endif

/* Not loaded by default: neither what it takes nor what cannot be told of it matters. */
#ifdef by_choice
SEC("socket") long program(void *context)
{
	return 0;
}

SEC("?socket") long calling(struct one *p)
{
	return takes(p);
}

SEC("?socket") long ambiguous(struct two *p)
{
	return p->x;
}
#endif

#ifdef no_such_section
SEC("nonsense") long program(void *context)
{
	return 0;
}
#endif

#ifdef legacy_maps
struct {
	int type, key_size, value_size, max_entries;
} old SEC("maps") = { 2, 4, 4, 1 };

SEC("socket") long program(void *context)
{
	return 0;
}
#endif

#ifdef absent_function
extern long xctl_no_such_function(void) __attribute__((section(".ksyms")));

SEC("socket") long program(void *context)
{
	return xctl_no_such_function();
}
#endif

#ifdef absent_variable
extern const int xctl_no_such_variable __attribute__((section(".ksyms")));

SEC("socket") long program(void *context)
{
	return (long)&xctl_no_such_variable;
}
#endif

#ifdef absent_and_weak
extern long xctl_no_such_function(void) __attribute__((section(".ksyms"), weak));

SEC("socket") long program(void *context)
{
	return xctl_no_such_function ? xctl_no_such_function() : 0;
}
#endif

#if defined(own_section)
#define NUMBER SEC("numbers") int number = 5
#elif defined(own_arena)
#define NUMBER SEC(".addr_space.1") int number = 5
#elif defined(in_no_section)
#define NUMBER int number __attribute__((common))
#endif
#ifdef NUMBER
NUMBER;

SEC("socket") long program(void *context)
{
	return *(volatile int *)&number;
}
#endif

#ifdef other_program
SEC("socket") __attribute__((noinline)) long called(void *context)
{
	return *(volatile long *)context;
}

SEC("xdp") long program(void *context)
{
	return called(context);
}
#endif

#ifdef without_types
struct {
	int (*type)[2];
	int (*max_entries)[1];
	int *key, *value;
} array SEC(".maps");

SEC("socket") long program(void *context)
{
	return 0;
}
#endif

/* Neither here nor declared to be the kernel's. */
#ifdef undefined_function
extern int other_file(void *context);

SEC("socket") long program(void *context)
{
	return other_file(context);
}
#endif

#ifdef undefined_and_weak
extern int number __attribute__((weak));

SEC("socket") long program(void *context)
{
	return &number ? number : 0;
}
#endif

#ifdef empty_variables
struct nothing {
} nothing;

SEC("socket") long program(void *context)
{
	return 0;
}
#endif

#ifdef long_version
char kernel_version[] SEC("version") = "1.0.2";

SEC("socket") long program(void *context)
{
	return 0;
}
#endif

#endif
