/* It takes what is not there without asking: the verifier refuses it. The second program is not loaded by default. */
#include "core.h"

#ifdef TARGET

struct one {
	int aa;
};
HAS(a, struct one);

#else

struct one {
	int a;
} RELOCATED;

SEC("socket") long unguarded(struct one *p) // poison
{
	return p->a;
}

SEC("?socket") long by_choice(struct one *p) // poison
{
	return p->a;
}

#endif
