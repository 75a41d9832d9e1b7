/* Types as a whole: existence, size, number. A struct is never a union, and a typedef never what it stands for. */
#include "core.h"

#ifdef TARGET

struct shape {
	long a[5];
};
union either {
	int a;
	char b[7];
};
enum level { LOW };
typedef struct shape shape_t;
typedef int number;
typedef int (*callback)(struct shape *, int);
typedef int (*callback2)(struct shape *, int, int);
typedef void *(*callback3)(struct shape *, int);
typedef int many[7];
typedef struct {
	int x;
} unnamed;
struct empty {};
HAS(a, struct shape);
HAS(b, union either);
HAS(c, enum level);
HAS(d, shape_t);
HAS(e, number);
HAS(f, callback);
HAS(g, callback2);
HAS(h, callback3);
HAS(i, many);
HAS(j, unnamed);
HAS(k, struct empty);

#else

struct shape {
	int x;
};
union either___local {
	long a;
};
struct either {
	int a;
};
enum level { HIGH };
typedef struct shape shape_t;
typedef long number;
typedef long (*callback)(struct shape *, long);
typedef int (*callback2)(struct shape *, int);
typedef int (*callback3)(struct shape *, int);
typedef int many[9];
typedef struct {
	int y;
} unnamed;
struct missing {
	int x;
};
typedef int missing_t;
struct empty {
	int x;
};

PROGRAM(a_struct, type_exists(struct shape)) // 1
PROGRAM(a_struct_size, type_size(struct shape)) // 40
PROGRAM(a_union, type_exists(union either___local)) // 1
PROGRAM(a_union_size, type_size(union either___local)) // 8
PROGRAM(a_struct_is_no_union, type_exists(struct either)) // 0
PROGRAM(an_enum, type_exists(enum level)) // 1
PROGRAM(an_enum_size, type_size(enum level)) // 4
PROGRAM(a_typedef, type_exists(shape_t)) // 1
PROGRAM(a_typedef_size, type_size(shape_t)) // 40
PROGRAM(any_integer_will_do, type_exists(number)) // 1
PROGRAM(any_integer_size, type_size(number)) // 4
PROGRAM(a_pointer_to_a_function, type_exists(callback)) // 1
PROGRAM(another_number_of_arguments, type_exists(callback2)) // 0
PROGRAM(another_result, type_exists(callback3)) // 0
PROGRAM(an_array_of_another_length, type_exists(many)) // 1
PROGRAM(an_array_size, type_size(many)) // 28
PROGRAM(an_unnamed_struct, type_exists(unnamed)) // 1
PROGRAM(no_such_struct, type_exists(struct missing)) // 0
PROGRAM(no_such_size, type_size(struct missing)) // 0
PROGRAM(no_such_typedef, type_exists(missing_t)) // 0
PROGRAM(no_such_number, type_id_target(struct missing)) // 0
PROGRAM(nothing_in_it, type_size(struct empty)) // 0
PROGRAM(here, type_id_local(struct shape)) // any
PROGRAM(there, type_id_target(struct shape)) // any
PROGRAM(there_too, type_id_target(number)) // any

#endif
