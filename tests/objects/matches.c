/*
 * Types of the same shape. clang has this question since version 15; the test turns "does it exist" into it, so that any
 * clang will do.
 */
#include "core.h"

#ifdef TARGET

struct there;
enum level { LOW = 7, MIDDLE, HIGH = 9 };
struct same {
	long extra;
	unsigned int a;
	enum level level;
	struct there *pointer;
	int list[3];
};
struct smaller {
	int a;
};
struct wider {
	long a;
};
struct unsigned_now {
	unsigned int a;
};
struct longer {
	int list[4];
};
struct points {
	struct smaller *a;
};
struct to_another {
	struct wider *a;
};
struct holds {
	struct smaller inner;
};
struct declared {
	struct there *a;
};
union either {
	int a;
	long b;
};
typedef int (*callback)(struct smaller *, int);
typedef int (*callback_long)(struct smaller *, long);
struct flavoured {
	int a;
	long b___kernel;
};
HAS(n, struct flavoured);
HAS(a, struct same);
HAS(b, struct smaller);
HAS(c, struct wider);
HAS(d, struct unsigned_now);
HAS(e, struct longer);
HAS(f, struct points);
HAS(g, struct to_another);
HAS(h, struct holds);
HAS(i, struct declared);
HAS(j, union either);
HAS(k, callback);
HAS(l, callback_long);
HAS(m, enum level);

#else

struct there {
	int complete;
};
enum level { HIGH, LOW };
struct same___mine {
	unsigned int a;
	enum level level;
	struct there *pointer;
	int list[3];
};
struct smaller {
	int a;
	int b;
};
struct wider {
	int a;
};
struct unsigned_now {
	int a;
};
struct longer {
	int list[3];
};
struct points {
	struct smaller___x {
		char anything;
	} *a;
};
struct to_another {
	struct smaller *a;
};
struct holds {
	struct smaller inner;
};
struct declared {
	struct there *a;
};
union either {
	long b;
};
typedef int (*callback)(struct smaller *, int);
typedef int (*callback_long)(struct smaller *, int);
enum level___more { LOW___a, MIDDLE___a, HIGH___a, HIGHER };

struct flavoured___mine {
	int a___x;
	long b;
};

PROGRAM(members_with_flavours, type_exists(struct flavoured___mine)) // 1
PROGRAM(same, type_exists(struct same___mine)) // 1
PROGRAM(one_member_is_gone, type_exists(struct smaller)) // 0
PROGRAM(another_size, type_exists(struct wider)) // 0
PROGRAM(another_sign, type_exists(struct unsigned_now)) // 0
PROGRAM(another_length, type_exists(struct longer)) // 0
PROGRAM(behind_a_pointer_names_count, type_exists(struct points)) // 1
PROGRAM(behind_a_pointer_another_name, type_exists(struct to_another)) // 0
PROGRAM(inside_all_counts, type_exists(struct holds)) // 0
PROGRAM(declared_is_enough, type_exists(struct declared)) // 1
PROGRAM(a_union, type_exists(union either)) // 1
PROGRAM(a_function, type_exists(callback)) // 1
PROGRAM(another_argument, type_exists(callback_long)) // 0
PROGRAM(an_enum_with_less, type_exists(enum level)) // 1
PROGRAM(an_enum_with_more, type_exists(enum level___more)) // 0

#endif
