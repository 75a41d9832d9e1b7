/*
 * Objects that load, and others that do not, for reasons around their relocations: one for each macro that
 * tests/relocations/ defines. The target has no member `a`; so what takes it must not be reached.
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
/* 190 helpers: those of a kernel that takes frozen data for constants. */
#define TEN(tens) \
	_##tens##0, _##tens##1, _##tens##2, _##tens##3, _##tens##4, _##tens##5, _##tens##6, _##tens##7, _##tens##8, _##tens##9
enum bpf_func_id {
	TEN(), TEN(1), TEN(2), TEN(3), TEN(4), TEN(5), TEN(6), TEN(7), TEN(8), TEN(9),
	TEN(10), TEN(11), TEN(12), TEN(13), TEN(14), TEN(15), TEN(16), TEN(17), TEN(18),
	__BPF_FUNC_MAX_ID,
};
HAS(helper, enum bpf_func_id);
struct two {
	int x;
};
struct two___other {
	int y, x;
};
HAS(two_, struct two);
HAS(two_other, struct two___other);

struct three {
	int p;
};
struct three___other {
	int q;
};
HAS(three, struct three);
HAS(three_other, struct three___other);

#else

struct two {
	int x;
} RELOCATED;

/* The target has two types of this name, one with either member. The first relocation decides which is meant. */
struct three {
	int p, q;
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

#if defined(narrowed_by_choice) || defined(narrowed)
#ifdef narrowed
SEC("socket") long first(struct three *p)
#else
SEC("?socket") long optional(struct three *p)
#endif
{
	return p->p;
}

SEC("socket") long program(struct three *p)
{
	return p->q;
}
#endif

#ifdef described
struct {
	int (*type)[1];
	int *key;
	int *value;
	int (*max_entries)[1];
} counts SEC(".maps");

int shared = 1;

static __attribute__((noinline)) long helper(int *context)
{
	return context[0];
}

SEC("socket") long program(int *context)
{
	int key = 0;

	return helper(context) + shared + !((void *(*)(void *, const void *))1)(&counts, &key); /* bpf_map_lookup_elem() */
}
#endif

#ifdef bare_function
/* Assembly has no debug information, and clang 14 crashes on __attribute__((nodebug)) here. */
long bare(int *context);
__asm__(".section .text\n.globl bare\n.type bare, @function\nbare:\nr0 = *(u32 *)(r1 + 0)\nexit\n.size bare, . - bare\n");

SEC("socket") long program(int *context)
{
	return bare(context);
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

/* The guard is a constant for the verifier if it lies in .rodata, with its value from the file. */
#if defined(frozen_guard)
const volatile int guard = 0;
#elif defined(frozen_guard_in_array)
const volatile struct {
	long other;
	char guards[3];
} guards = { 1, { 1, 0, 1 } };
#define guard guards.guards[1]
#elif defined(frozen_guard_is_set)
const volatile int guard = 1;
#elif defined(guard_in_data)
volatile int guard = 0;
#elif defined(guard_by_variable_index)
const volatile int guards[2];
#define guard guards[*(int *)p & 1]
#endif
#if defined(guard) || defined(frozen_guard) || defined(frozen_guard_is_set) || defined(guard_in_data)
SEC("socket") long program(struct one *p)
{
	return guard ? takes(p) : 0;
}
#endif

#if defined(no_such_helper) || defined(guarded_helper)
static long (*helper)(void) = (void *)999;

SEC("socket") long program(struct one *p)
{
#ifdef guarded_helper
	if (!exists(struct one, a))
		return 0;
#endif
	return helper();
}
#endif

/* tests/relocations/ takes the records of .BTF.ext from the second function. */
#ifdef two_functions
static __attribute__((noinline)) long silent(void *context)
{
	return *(volatile int *)context;
}

static __attribute__((noinline)) long speaks(void *context)
{
	return silent(context) + 1;
}

SEC("socket") long program(void *context)
{
	return speaks(context);
}

SEC("xdp") long other(void *context)
{
	return 1;
}
#endif

/* The target has no type of this name. */
#if defined(absent_type) || defined(absent_type_and_member)
struct of_a_module {
	int member;
} RELOCATED;

SEC("socket") long program(struct of_a_module *p)
{
#ifdef absent_type_and_member
	return p->member + ((struct one *)p)->a;
#else
	return p->member;
#endif
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
