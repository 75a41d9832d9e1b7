/* It asks before it takes what may not be there, and so runs everywhere. */
#include "core.h"

#ifdef TARGET

struct one {
	int other;
};
HAS(a, struct one);

#else

struct one {
	int a;
} RELOCATED;

SEC("socket") long guarded(struct one *p) // 0 poison
{
	if (exists(struct one, a))
		return p->a;
	return 0;
}

#endif
