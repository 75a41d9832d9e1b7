/* Two types of the same name have the field in the same place, and differ in its size. */
#include "core.h"

#ifdef TARGET

struct one {
	int a;
};
struct one___second {
	long a;
};
HAS(a, struct one);
HAS(b, struct one___second);

#else

struct one {
	int a;
} RELOCATED;

PROGRAM(place, offset(struct one, a)) // 0
PROGRAM(which, size(struct one, a)) // refused: (4 and 8)

#endif
