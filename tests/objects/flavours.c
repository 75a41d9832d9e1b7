/* Names with `___`: what follows is for the programmer to tell apart what the kernel calls the same. */
#include "core.h"

#ifdef TARGET

struct one {
	int a;
	int b;
};
struct one___second {
	int pad;
	int a;
};
struct two {
	int x;
};
struct two___twin {
	int x;
	long y;
};
struct three {
	int pad;
	int after;
};
struct four____x {
	int pad;
	int x;
};
struct ___five {
	int pad[2];
	int x;
};
struct six {
	int a;
	int b;
};
struct six___other {
	int pad;
	int pad2;
	int b;
};
struct seven___a___b {
	int pad[5];
	int x;
};
typedef int number;
enum level {
	LOW = 7,
	HIGH___up = 9,
};
struct eight {
	int pad;
	enum level level;
};
HAS(k, number);
HAS(l, enum level);
HAS(m, struct eight);
HAS(a, struct one);
HAS(b, struct one___second);
HAS(c, struct two);
HAS(d, struct two___twin);
HAS(e, struct three);
HAS(f, struct four____x);
HAS(g, struct ___five);
HAS(h, struct six);
HAS(i, struct six___other);
HAS(j, struct seven___a___b);

#else

struct one___mine {
	int b;
} RELOCATED;
struct two {
	int x;
} RELOCATED;
struct three___old {
	int before;
} RELOCATED;
struct three___new {
	int after;
} RELOCATED;
struct four____x {
	int x;
} RELOCATED;
struct four {
	int x;
} RELOCATED;
struct ___five {
	int x;
} RELOCATED;
struct six {
	int b;
	int a;
} RELOCATED;
struct seven___a {
	int x;
} RELOCATED;
struct seven___a___c {
	int x;
} RELOCATED;

struct one___fourth {
	int b___x;
} RELOCATED;
typedef int number___mine;
enum level___mine { LOW___a = 1, HIGH___b };
struct eight {
	enum level___mine level;
} RELOCATED;

PROGRAM(fields_have_no_flavours, exists(struct one___fourth, b___x)) // 0
PROGRAM(a_typedef, type_exists(number___mine)) // 1
PROGRAM(the_size_of_a_typedef, type_size(number___mine)) // 4
PROGRAM(an_enum, type_exists(enum level___mine)) // 1
PROGRAM(a_constant, constant_value(enum level___mine, LOW___a)) // 7
PROGRAM(two_of_a_constant, constant_value(enum level___mine, HIGH___b)) // 9
PROGRAM(a_field_of_an_enum, offset(struct eight, level)) // 4
PROGRAM(only_one_has_it, offset(struct one___mine, b)) // 4
PROGRAM(both_agree, offset(struct two, x)) // 0
PROGRAM(old_field, exists(struct three___old, before)) // 0
PROGRAM(old_field_offset, offset(struct three___old, before)) // poison
PROGRAM(new_field, exists(struct three___new, after)) // 1
PROGRAM(new_field_offset, offset(struct three___new, after)) // 4
PROGRAM(four_underscores, offset(struct four____x, x)) // 4
PROGRAM(four_underscores_are_no_flavour, exists(struct four, x)) // 0
PROGRAM(nothing_before, offset(struct ___five, x)) // 8
PROGRAM(only_one_has_a, offset(struct six, a)) // 0
PROGRAM(and_so_the_other_is_out, offset(struct six, b)) // 4
PROGRAM(the_last_separator_counts, exists(struct seven___a, x)) // 0
PROGRAM(two_flavours, offset(struct seven___a___c, x)) // 20

#endif
