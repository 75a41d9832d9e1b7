/* Constants of enums. */
#include "core.h"

#ifdef TARGET

enum colours {
	BLACK,
	RED = 5,
	GREEN = 7,
	BLUE___new = 9,
	NEGATIVE = -3,
};
typedef enum { MONDAY = 3, TUESDAY } day;
enum tiny { SMALL = 200 } PACKED;
struct colour_is_no_enum {
	int RED;
};
HAS(a, enum colours);
HAS(b, day);
HAS(c, enum tiny);
HAS(d, struct colour_is_no_enum);

#else

enum colours { RED, GREEN, BLUE, WHITE, NEGATIVE = -1 };
typedef enum { MONDAY, SUNDAY } day;
enum tiny { SMALL = 1 };
enum colour_is_no_enum { YELLOW };

PROGRAM(red, constant_value(enum colours, RED)) // 5
PROGRAM(red_exists, constant_exists(enum colours, RED)) // 1
PROGRAM(green, constant_value(enum colours, GREEN)) // 7
PROGRAM(blue, constant_value(enum colours, BLUE)) // 9
PROGRAM(white, constant_value(enum colours, WHITE)) // poison
PROGRAM(white_exists, constant_exists(enum colours, WHITE)) // 0
PROGRAM(negative, constant_value(enum colours, NEGATIVE)) // -3
PROGRAM(monday, constant_value(day, MONDAY)) // 3
PROGRAM(sunday, constant_exists(day, SUNDAY)) // 0
PROGRAM(small, constant_value(enum tiny, SMALL)) // 200
PROGRAM(no_enum, constant_exists(enum colour_is_no_enum, YELLOW)) // 0

#endif
