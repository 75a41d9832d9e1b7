/* Bitfields: moved, wider and narrower, across the bytes that they are declared with, and turned into whole fields. */
#include "core.h"

#ifdef TARGET

enum colour { RED, GREEN };
struct bits {
	unsigned int pad : 7;
	unsigned int a : 3;
	int s : 5;
	unsigned int whole;
	unsigned long low : 20;
	unsigned long straddle : 30;
	int became_whole;
	unsigned int became_bits : 9;
	enum colour colour : 2;
	_Bool flag : 1;
};
struct tight {
	unsigned char pad;
	unsigned int odd : 30;
} PACKED;
HAS(a, struct bits);
HAS(b, struct tight);
_Static_assert(sizeof(struct bits) == 24, "");

#else

enum colour { RED, GREEN };
struct bits {
	_Bool flag : 1;
	unsigned int a : 5;
	unsigned int s : 6;
	unsigned long straddle : 33;
	int became_whole : 4;
	unsigned int became_bits;
	enum colour colour : 3;
	unsigned int gone : 2;
} RELOCATED;
struct tight {
	unsigned int odd : 30;
} RELOCATED;

PROGRAM(a_offset, offset(struct bits, a)) // 0
PROGRAM(a_size, size(struct bits, a)) // 4
PROGRAM(a_signed, is_signed(struct bits, a)) // 0
PROGRAM(a_left, lshift(struct bits, a)) // 54|39
PROGRAM(a_right, rshift(struct bits, a)) // 61
PROGRAM(s_signed, is_signed(struct bits, s)) // 1
PROGRAM(s_left, lshift(struct bits, s)) // 49|42
PROGRAM(s_right, rshift(struct bits, s)) // 59
PROGRAM(straddle_offset, offset(struct bits, straddle)) // 8
PROGRAM(straddle_size, size(struct bits, straddle)) // 8
PROGRAM(straddle_left, lshift(struct bits, straddle)) // 14|20
PROGRAM(straddle_right, rshift(struct bits, straddle)) // 34
PROGRAM(whole_offset, offset(struct bits, became_whole)) // 16
PROGRAM(whole_size, size(struct bits, became_whole)) // 4
PROGRAM(whole_left, lshift(struct bits, became_whole)) // 32
PROGRAM(whole_right, rshift(struct bits, became_whole)) // 32
PROGRAM(bits_offset, offset(struct bits, became_bits)) // 20
PROGRAM(bits_left, lshift(struct bits, became_bits)) // 55|32
PROGRAM(bits_right, rshift(struct bits, became_bits)) // 55
PROGRAM(flag_offset, offset(struct bits, flag)) // 21
PROGRAM(flag_size, size(struct bits, flag)) // 1
PROGRAM(flag_left, lshift(struct bits, flag)) // 60|59
PROGRAM(flag_right, rshift(struct bits, flag)) // 63
PROGRAM(colour_offset, offset(struct bits, colour)) // 20
PROGRAM(colour_left, lshift(struct bits, colour)) // 53|41
PROGRAM(colour_right, rshift(struct bits, colour)) // 62
PROGRAM(gone_exists, exists(struct bits, gone)) // 0
PROGRAM(gone_offset, offset(struct bits, gone)) // poison
PROGRAM(odd_offset, offset(struct tight, odd)) // 0
PROGRAM(odd_size, size(struct tight, odd)) // 8
PROGRAM(odd_left, lshift(struct tight, odd)) // 26|8
PROGRAM(odd_right, rshift(struct tight, odd)) // 34

#endif
