/* A bitfield across nine bytes: no load holds it. */
#include "core.h"

#ifdef TARGET

struct one {
	unsigned char pad : 5;
	unsigned long a : 62;
} PACKED;
HAS(a, struct one);

#else

struct one {
	unsigned long a : 62;
} RELOCATED;

PROGRAM(wide, offset(struct one, a)) // refused: no load of 64 bits

#endif
