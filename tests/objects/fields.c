/* Fields that moved, changed size or type, are in other structs or gone. */
#include "core.h"

#ifdef TARGET

enum colour { RED, GREEN };
typedef int number;
struct inner {
	long pad;
	int x;
	int y[3];
};
struct fields {
	char front[24];
	int moved;
	const volatile unsigned int qualified;
	unsigned long widened;
	unsigned short narrowed;
	long was_int;
	struct inner *pointer;
	struct {
		int unused;
		struct {
			long deep;
		};
	};
	union {
		int in_union;
		char other[8];
	};
	struct inner nested;
	struct inner many[4];
	int matrix[3][5];
	enum colour colour;
	number typed;
	unsigned char letter;
	struct inner *was_a_number;
	struct inner last[];
};
enum shade { DARK };
struct mismatches {
	int pad;
	enum shade named;
	enum { DIM } nameless;
	struct inner was_a_union;
	float real;
	int was_real;
};
HAS(c, struct mismatches);
HAS(a, struct fields);
HAS(b, struct inner);

#define AT(field, there) _Static_assert(__builtin_offsetof(struct fields, field) == there, #field)
AT(moved, 24);
AT(narrowed, 40);
AT(deep, 72);
AT(nested.y[2], 108);
AT(many[3].x, 192);
AT(matrix[2][4], 264);
AT(typed, 272);
AT(last, 288);

#else

enum colour { GREEN, RED, BLUE };
typedef unsigned long number;
struct inner {
	int x;
	int y[4];
} RELOCATED;
struct fields {
	struct inner last[0];
	number typed;
	int moved;
	unsigned int qualified;
	unsigned int widened;
	unsigned long narrowed;
	int was_int;
	void *pointer;
	long deep;
	struct {
		union {
			int in_union;
		};
	};
	enum colour colour;
	struct inner nested;
	struct inner many[8];
	long matrix[3][6];
	char letter;
	long was_a_number;
	int gone;
} RELOCATED;
struct growing {
	int first;
	struct inner last[];
} RELOCATED;

enum tint { PALE };
union once {
	int x;
};
struct mismatches {
	enum tint named;
	enum tint nameless;
	union once was_a_union;
	float real;
	float was_real;
} RELOCATED;

PROGRAM(another_enum, exists(struct mismatches, named)) // 0
PROGRAM(a_nameless_enum, offset(struct mismatches, nameless)) // 8
PROGRAM(a_struct_for_a_union, offset(struct mismatches, was_a_union)) // 16
PROGRAM(real, offset(struct mismatches, real)) // 40
PROGRAM(was_real, exists(struct mismatches, was_real)) // 0
PROGRAM(moved, offset(struct fields, moved)) // 24
PROGRAM(qualified, offset(struct fields, qualified)) // 28
PROGRAM(widened, offset(struct fields, widened)) // 32
PROGRAM(widened_size, size(struct fields, widened)) // 8
PROGRAM(narrowed_size, size(struct fields, narrowed)) // 2
PROGRAM(pointer, offset(struct fields, pointer)) // 56
PROGRAM(deep, offset(struct fields, deep)) // 72
PROGRAM(in_union, offset(struct fields, in_union)) // 80
PROGRAM(nested, offset(struct fields, nested)) // 88
PROGRAM(nested_size, size(struct fields, nested)) // 24
PROGRAM(nested_x, offset(struct fields, nested.x)) // 96
PROGRAM(nested_y, offset(struct fields, nested.y[2])) // 108
PROGRAM(nested_y_beyond, offset(struct fields, nested.y[3])) // poison
PROGRAM(nested_y_beyond_exists, exists(struct fields, nested.y[3])) // 0
PROGRAM(nested_y_size, size(struct fields, nested.y)) // 12
PROGRAM(many, offset(struct fields, many[3].x)) // 192
PROGRAM(many_beyond, exists(struct fields, many[4].x)) // 0
PROGRAM(many_size, size(struct fields, many[2])) // 24
PROGRAM(matrix, offset(struct fields, matrix[2][4])) // 264
PROGRAM(matrix_size, size(struct fields, matrix[1])) // 20
PROGRAM(matrix_beyond, exists(struct fields, matrix[2][5])) // 0
PROGRAM(colour, offset(struct fields, colour)) // 268
PROGRAM(colour_signed, is_signed(struct fields, colour)) // 0
PROGRAM(typed, offset(struct fields, typed)) // 272
PROGRAM(typed_signed, is_signed(struct fields, typed)) // 1
PROGRAM(moved_lshift, lshift(struct fields, moved)) // 32
PROGRAM(moved_rshift, rshift(struct fields, moved)) // 32
PROGRAM(narrowed_lshift, lshift(struct fields, narrowed)) // 48
PROGRAM(narrowed_rshift, rshift(struct fields, narrowed)) // 48
PROGRAM(letter_signed, is_signed(struct fields, letter)) // 0
PROGRAM(gone, offset(struct fields, gone)) // poison
PROGRAM(gone_size, size(struct fields, gone)) // poison
PROGRAM(gone_signed, is_signed(struct fields, gone)) // poison
PROGRAM(gone_lshift, lshift(struct fields, gone)) // poison
PROGRAM(gone_rshift, rshift(struct fields, gone)) // poison
PROGRAM(gone_exists, exists(struct fields, gone)) // 0
PROGRAM(moved_exists, exists(struct fields, moved)) // 1
PROGRAM(other_kind, exists(struct fields, was_a_number)) // 0
PROGRAM(no_struct, exists(struct growing, first)) // 0
PROGRAM(no_struct_offset, offset(struct growing, last[7].x)) // poison
PROGRAM(second_of_two, offset(struct inner, y[0])) // 12
PROGRAM(element, __builtin_preserve_field_info(((struct inner *)0)[2].x, 0)) // 56

LOAD(load_moved, struct fields, moved) // 24
LOAD(load_widened, struct fields, widened) // 32
LOAD(load_narrowed, struct fields, narrowed) // 40
LOAD(load_was_int, struct fields, was_int) // poison
LOAD(load_pointer, struct fields, pointer) // 56
LOAD(load_deep, struct fields, deep) // 72
LOAD(load_many, struct fields, many[2].y[1]) // 176
LOAD(load_letter, struct fields, letter) // 276
LOAD(load_gone, struct fields, gone) // poison
STORE(store_moved, struct fields, moved, v) // 24
STORE(store_constant, struct fields, moved, 7) // 24
STORE(store_widened, struct fields, widened, v) // 32
STORE(store_narrowed, struct fields, narrowed, 1) // 40
STORE(store_gone, struct fields, gone, 1) // poison

#endif
