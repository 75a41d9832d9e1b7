/*
 * What the objects in this directory are written with. Each file has two halves: with -DTARGET it gives the types of an
 * imagined kernel, else programs that were compiled for other types and ask about that kernel's. What comes after //
 * is the answer, relocation by relocation: a number, `poison`, or two numbers where byte order matters (little|big).
 * tests/relocations/ compares it with xctl's answer and libbpf's.
 */
#define SEC(name) __attribute__((section(name), used))
#define RELOCATED __attribute__((preserve_access_index))
#define PACKED __attribute__((packed))

/* A type in the target's BTF. */
#define HAS(name, type) type name

/* The answer of one question. */
#define PROGRAM(name, question) SEC("socket") long name(void *context) { return (long)(question); }
/* Loads and stores whose own offset and size are relocated. */
#define LOAD(name, type, access) SEC("socket") long name(type *p) { return (long)p->access; }
#define STORE(name, type, access, value) SEC("socket") long name(type *p, long v) { p->access = value; return 0; }

#define field(type, access, kind) __builtin_preserve_field_info(((type *)0)->access, kind)
#define offset(type, access) field(type, access, 0)
#define size(type, access) field(type, access, 1)
#define exists(type, access) field(type, access, 2)
#define is_signed(type, access) field(type, access, 3)
#define lshift(type, access) field(type, access, 4)
#define rshift(type, access) field(type, access, 5)
#define type_id_local(type) __builtin_btf_type_id(*(type *)0, 0)
#define type_id_target(type) __builtin_btf_type_id(*(type *)0, 1)
#define type_exists(type) __builtin_preserve_type_info(*(type *)0, 0)
#define type_size(type) __builtin_preserve_type_info(*(type *)0, 1)
#define constant_exists(type, constant) __builtin_preserve_enum_value(*(type *)constant, 0)
#define constant_value(type, constant) __builtin_preserve_enum_value(*(type *)constant, 1)

char LICENSE[] SEC("license") = "GPL";
