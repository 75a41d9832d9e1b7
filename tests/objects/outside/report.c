/*
 * Programs that load beside others that do not. The target has no member `a`. tests/report.rs reads what `inspect` says of
 * them, and tests/relocations/ asks libbpf for the truth.
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

#else

static __attribute__((noinline)) long takes(struct one *p)
{
	return p->a;
}

SEC("socket") long loads(void *context)
{
	return 0;
}

SEC("socket") long fails(struct one *p)
{
	return p->a;
}

SEC("socket") long fails_by_call(struct one *p)
{
	return takes(p);
}

SEC("xdp") long passes(void *context)
{
	return 2;
}

SEC("?socket") long by_choice(struct one *p)
{
	return p->a;
}

SEC("?fentry/xctl_no_such_function") long nowhere(void *context)
{
	return 0;
}

/* libbpf takes only global programs. */
#ifdef STATIC
struct {
	int (*type)[2];
	int (*max_entries)[3];
	int *key, *value;
} counters SEC(".maps");

SEC("socket") static long hidden(void *context)
{
	return 0;
}
#endif

#ifdef MANY
/* 64 programs of a section that libbpf does not know, each in its own, and as many hooks that no kernel has. */
#define TWO(name, macro) macro(name##0) macro(name##1)
#define FOUR(name, macro) TWO(name##0, macro) TWO(name##1, macro)
#define EIGHT(name, macro) FOUR(name##0, macro) FOUR(name##1, macro)
#define SIXTEEN(name, macro) EIGHT(name##0, macro) EIGHT(name##1, macro)
#define ALL(name, macro) SIXTEEN(name##00, macro) SIXTEEN(name##01, macro) SIXTEEN(name##10, macro) SIXTEEN(name##11, macro)
#define UNKNOWN(name) SEC("nonsense_" #name) long name(void *context) { return 0; }
#define ABSENT(name) SEC("?fentry/xctl_no_such_" #name) long name(void *context) { return 0; }
ALL(u, UNKNOWN)
ALL(a, ABSENT)
#endif

#endif
