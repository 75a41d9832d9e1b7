/* A load reaches 32767 bytes. */
#include "core.h"

#ifdef TARGET

struct one {
	char front[40000];
	int a;
};
HAS(a, struct one);

#else

struct one {
	int a;
} RELOCATED;

LOAD(far, struct one, a) // refused: offset 40000 does not fit

#endif
