/* Two types of the same name have the field, in different places: nobody can know which one is meant. */
#include "core.h"

#ifdef TARGET

struct one {
	int a;
};
struct one___second {
	int pad;
	int a;
};
HAS(a, struct one);
HAS(b, struct one___second);

#else

struct one {
	int a;
} RELOCATED;

PROGRAM(which, offset(struct one, a)) // refused: bit offset 0 and 32

#endif
