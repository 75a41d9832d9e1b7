//! The text is compared with the expected C, and clang compiles the definitions of a real kernel's types.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::btf::samples::{Builder, sample};
use crate::btf::{Kind, TypeId};

fn body(btf: &Btf, list: &str) -> Result<String, String> {
    let entries = parse_list(list).map_err(|e| e.to_string())?;
    make::definitions(btf, &entries).map_err(|e| e.to_string())
}

fn sample_btf() -> Btf {
    Btf::parse(&sample(false).0).unwrap()
}

#[test]
fn a_whole_type_with_all_it_needs() {
    let text = body(&sample_btf(), "struct sock").unwrap();
    assert_eq!(
        text,
        "struct sock;

enum state {
\tOPEN = 1,
\tSHUT = -1,
};

struct common {
\tunion {
\t\tint daddr;
\t\tunsigned char d8;
\t};
\tstruct {
\t\tunsigned char port;
\t\tunsigned char num:3;
\t\tunsigned char kern:1;
\t};
\tenum state st;
};

typedef unsigned char char_t;

struct addr {
\tunion {
\t\tunsigned char b[16];
\t\tint w;
\t} u;
};

struct sock {
\tstruct common c;
\tstruct sock *next;
\tconst char_t name[16];
\tstruct addr a[2];
};

"
    );
}

#[test]
fn a_trimmed_type_is_flat_and_trims_what_it_contains() {
    let list = "# comment\n\nstruct sock: c  # more\nstruct common: kern daddr\nstruct common: st\nenum state: SHUT\n";
    let text = body(&sample_btf(), list).unwrap();
    assert_eq!(
        text,
        "enum state {
\tSHUT = -1,
};

struct common {
\tint daddr;
\tunsigned char kern:1;
\tenum state st;
};

struct sock {
\tstruct common c;
};

"
    );
    let whole_wins = body(&sample_btf(), "struct addr\nstruct addr: u").unwrap();
    assert_eq!(whole_wins, body(&sample_btf(), "struct addr").unwrap());
}

#[test]
fn constants_typedefs_and_kinds_left_out() {
    let text = body(&sample_btf(), "enum: TOP OPEN\nenum: BIG\nchar_t\nbtf_trace_it").unwrap();
    assert_eq!(
        text,
        "struct sock;

typedef unsigned char char_t;
typedef void (*btf_trace_it)(void *, const struct sock *, int);

enum {
\tTOP = 18446744073709551615ULL,
\tBIG = 4294967298LL,
};

enum {
\tOPEN = 1,
};

"
    );
}

#[test]
fn what_is_missing_is_named_with_what_comes_close() {
    let btf = sample_btf();
    let fails = |list: &str| body(&btf, list).unwrap_err();
    assert_eq!(fails("\nstruct sokc"), "line 2: this BTF has no struct sokc; did you mean sock?");
    assert_eq!(fails("union sock"), "line 1: this BTF has no union sock");
    assert_eq!(fails("struct common: dadr"), "line 1: struct common has no member dadr; did you mean daddr?");
    assert_eq!(fails("enum state: OPENS"), "line 1: enum state has no constant OPENS; did you mean OPEN?");
    assert_eq!(fails("enum: OPENS"), "line 1: this BTF has no enum with a constant OPENS; did you mean OPEN?");
    assert_eq!(fails("typedef char_t: x"), "line 1: typedef char_t has no members");
    for wrong in
        ["struct", "struct a b", "struct a:", "int x y", "str*ct", "struct a: b-c", "struct 1a", ":", "?", "? : a"]
    {
        assert!(fails(wrong).starts_with("line 1: "), "{wrong}");
    }
}

#[test]
fn what_is_optional_may_be_missing() {
    let text =
        body(&sample_btf(), "? struct gone: x\nstruct common: st ?gone\n? enum: GONE\nenum: OPEN ?LOST").unwrap();
    assert!(text.starts_with("/* struct gone: this kernel has none */\n"), "{text}");
    assert!(text.contains("\tenum state st;\n\t/* gone: this kernel has none */\n}"), "{text}");
    assert!(text.contains("/* GONE: this kernel has none */\n"), "{text}");
    assert!(text.contains("/* LOST: this kernel has none */\n"), "{text}");
}

#[test]
fn declarators_from_the_inside_out() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let ptr = b.ptr(int);
    let array_of_ptr = b.array(ptr, 3);
    let array = b.array(int, 3);
    let grid = b.array(array, 2);
    let ptr_to_array = b.ptr(array);
    let konst = b.refer(10, "", int);
    let ptr_to_const = b.ptr(konst);
    let const_ptr = b.refer(10, "", ptr_to_const);
    let volatile_const = b.refer(9, "", konst);
    let inner = b.proto(int, &[]);
    let inner_ptr = b.ptr(inner);
    let outer = b.proto(inner_ptr, &[("", ptr_to_array), ("", TypeId::VOID)]);
    let outer_ptr = b.ptr(outer);
    let table = b.array(outer_ptr, 4);
    let tagged = b.refer(18, "rcu", int);
    let tagged_ptr = b.ptr(tagged);
    let restrict = b.refer(11, "", tagged_ptr);
    let none = b.ptr(TypeId::VOID);
    let fwd_name = b.string(b"later");
    let fwd = b.raw(fwd_name, 7, true, 0, 0, &[]);
    let fwd_ptr = b.ptr(fwd);
    let byte_enum = b.enumeration("small", 1, false, &[("S", 1)]);
    let members = [
        ("a", array_of_ptr),
        ("b", grid),
        ("c", ptr_to_array),
        ("d", const_ptr),
        ("e", volatile_const),
        ("f", table),
        ("g", restrict),
        ("h", none),
        ("i", fwd_ptr),
        ("j", byte_enum),
    ];
    let members: Vec<_> = members.iter().map(|(name, ty)| (*name, *ty, 0)).collect();
    b.composite(4, "all", 64, false, &members);
    let text = body(&Btf::parse(&b.finish()).unwrap(), "struct all").unwrap();
    assert_eq!(
        text,
        "union later;

enum small {
\tS = 1,
} __attribute__((mode(QI)));

struct all {
\tint *a[3];
\tint b[2][3];
\tint (*c)[3];
\tconst int *const d;
\tvolatile const int e;
\tint (*(*f[4])(int (*)[3], ...))(void);
\tint *g;
\tvoid *h;
\tunion later *i;
\tenum small j;
};

"
    );
}

#[test]
fn types_of_one_name_are_told_apart() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let other = b.composite(4, "twin", 4, false, &[("x", int, 0)]);
    b.composite(4, "user", 8, false, &[("t", other, 0)]);
    b.composite(4, "twin", 8, false, &[("y", int, 0)]);
    let first = b.enumeration("", 4, false, &[("ONE", 1)]);
    let second = b.enumeration("", 4, false, &[("ONE", 1)]);
    b.composite(4, "enums", 8, false, &[("a", first, 0), ("b", second, 32)]);
    let later = TypeId(4);
    b.composite(4, "both", 8, false, &[("a", other, 0), ("b", later, 0)]);
    let btf = Btf::parse(&b.finish()).unwrap();
    assert!(body(&btf, "struct both").unwrap().contains("\tstruct twin a;\n\tstruct twin___2 b;\n"));
    assert!(body(&btf, "struct enums").unwrap().contains("\t\tONE___2 = 1,\n"));
}

#[test]
fn what_c_cannot_say_is_an_error() {
    let fails = |build: fn(&mut Builder)| {
        let mut b = Builder::new(false);
        build(&mut b);
        body(&Btf::parse(&b.finish()).unwrap(), "struct s").unwrap_err()
    };
    let in_itself = fails(|b| {
        b.composite(4, "s", 4, false, &[("me", TypeId(1), 0)]);
    });
    assert_eq!(in_itself, "line 1: type [1] (STRUCT \"s\") contains itself");
    let unnamed = fails(|b| {
        b.composite(4, "s", 4, false, &[("x", TypeId(2), 0)]);
        b.composite(4, "", 4, false, &[("", TypeId(2), 0)]);
    });
    assert!(unnamed.contains("nested too deep"), "{unnamed}");
    let typedef = fails(|b| {
        b.composite(4, "s", 4, false, &[("x", TypeId(2), 0)]);
        b.refer(8, "t", TypeId(2));
    });
    assert_eq!(typedef, "line 1: type [2] (TYPEDEF \"t\") contains itself");
    let pointers = fails(|b| {
        b.composite(4, "s", 4, false, &[("x", TypeId(2), 0)]);
        b.ptr(TypeId(2));
    });
    assert!(pointers.contains("never ends"), "{pointers}");
    let function = fails(|b| {
        b.composite(4, "s", 4, false, &[("x", TypeId(2), 0)]);
        b.refer(12, "f", TypeId(1));
    });
    assert!(function.contains("is not a type in C"), "{function}");
    for name in ["a;", "a b", "", "core::x", "1"] {
        let mut b = Builder::new(false);
        let inner = b.composite(4, "t", 4, false, &[(name, TypeId(3), 0)]);
        b.composite(4, "s", 4, false, &[("x", inner, 0)]);
        b.int("int", 4, true);
        let text = body(&Btf::parse(&b.finish()).unwrap(), "struct s");
        // A member without a name, of a type without members, only fills space.
        assert_eq!(text.is_ok(), name.is_empty(), "{name}");
    }
    let bad_int = fails(|b| {
        b.composite(4, "s", 4, false, &[("x", TypeId(2), 0)]);
        b.int("int; evil", 4, true);
    });
    assert!(bad_int.contains("C does not know"), "{bad_int}");
}

/// Text that doubles at every level, and nesting as deep as the file is long.
#[test]
fn bombs_are_defused() {
    let mut b = Builder::new(false);
    for level in 1..=60u32 {
        let next = TypeId(level + 1);
        b.composite(4, if level == 1 { "s" } else { "" }, 4, false, &[("a", next, 0), ("b", next, 0)]);
    }
    b.int("int", 4, true);
    let error = body(&Btf::parse(&b.finish()).unwrap(), "struct s").unwrap_err();
    assert!(error.contains("more than") || error.contains("too deep"), "{error}");

    let mut b = Builder::new(false);
    for level in 1..=28u32 {
        let next = TypeId(level + 1);
        b.composite(4, if level == 1 { "s" } else { "" }, 4, false, &[("a", next, 0), ("b", next, 0)]);
    }
    b.int("int", 4, true);
    let error = body(&Btf::parse(&b.finish()).unwrap(), "struct s").unwrap_err();
    assert!(error.contains("more than 32 MiB"), "{error}");

    let mut b = Builder::new(false);
    for level in 1..=50_000u32 {
        b.composite(4, &format!("s{level}"), 4, false, &[("a", TypeId(level + 1), 0)]);
    }
    b.int("int", 4, true);
    let error = body(&Btf::parse(&b.finish()).unwrap(), "struct s1").unwrap_err();
    assert!(error.contains("nested too deep"), "{error}");
}

#[test]
fn the_header_can_be_included_twice_and_says_who_made_it() {
    let text = header(&sample_btf(), &parse_list("char_t").unwrap(), "xctl btf 'x */ y\n'").unwrap();
    assert!(text.starts_with("/*\n * Kernel types, from BTF. Made by: xctl btf 'x * / y '\n"), "{text}");
    assert!(text.contains("#ifndef __VMLINUX_H__\n#define __VMLINUX_H__\n"));
    assert_eq!(text.matches("*/").count(), 2, "{text}");
}

/// Gives C to `clang -target bpf`; `None` if there is no such clang.
fn clang(code: &str) -> Option<Result<(), String>> {
    let mut child = Command::new("clang")
        .args(["-target", "bpf", "-Wall", "-Werror", "-fsyntax-only", "-x", "c", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .ok()?;
    // A program that is no compiler ends before it reads its input.
    let _ = child.stdin.take().unwrap().write_all(code.as_bytes());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    if message.contains("nable to create target") {
        return None;
    }
    Some(if output.status.success() { Ok(()) } else { Err(message) })
}

/// Every named type of the running kernel, whole: clang accepts all, and each member has the size that BTF says.
#[test]
fn clang_takes_all_types_of_the_running_kernel() {
    let path = "/sys/kernel/btf/vmlinux";
    let Ok(bytes) = std::fs::read(path) else { return println!("skipped: no {path}") };
    let btf = Btf::parse(&bytes).unwrap();
    let mut entries = Vec::new();
    let mut asserts = String::new();
    let mut seen = std::collections::HashSet::new();
    for id in btf.ids() {
        let (kind, name) = (btf.kind(id), btf.name(id));
        let word = match kind {
            Kind::Struct => "struct",
            Kind::Union => "union",
            Kind::Enum | Kind::Enum64 => "enum",
            Kind::Typedef => "typedef",
            _ => continue,
        };
        // A kernel can have a struct and an enum of one name, but a C file cannot: the second gets another name.
        let namespace = if kind == Kind::Typedef { "typedef" } else { "tag" };
        if name.is_empty() || !seen.insert((namespace, name)) {
            continue;
        }
        let Ok(entry) = parse_entry(&format!("{word} {name}")) else { continue };
        entries.push(entry);
        if kind.is_composite() {
            for member in btf.members(id).filter(|m| !m.name.is_empty() && m.bitfield_size == 0) {
                // BTF does not mark packed and aligned structs, so a struct inside a struct may have another size.
                if holds_a_struct(&btf, member.ty) {
                    continue;
                }
                let (name, size) = (member.name, btf.size_of(member.ty).unwrap());
                let tag = btf.name(id);
                writeln!(asserts, "_Static_assert(sizeof((({word} {tag} *)0)->{name}) == {size}, \"{tag}.{name}\");")
                    .unwrap();
            }
        }
    }
    let text = header(&btf, &entries, "a test").unwrap();
    match clang(&text) {
        None => return println!("skipped: no clang -target bpf"),
        Some(result) => result.unwrap(),
    }
    clang(&(text + &asserts)).unwrap().unwrap();
    println!("{} types, {} members", entries.len(), asserts.lines().count());
}

fn holds_a_struct(btf: &Btf, id: TypeId) -> bool {
    let id = btf.resolve(id);
    match btf.array(id) {
        Some(array) => holds_a_struct(btf, array.elem),
        None => btf.kind(id).is_composite(),
    }
}
