//! Rules that the corpus in tests/objects cannot show, because no compiler writes such types; and hostile files.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::*;
use crate::btf::samples::Builder;
use crate::btf::tests::Noise;
use crate::btf_ext::CoreRelocation;
use crate::steps::TOO_COMPLEX;

fn access<'a>(root: TypeId, access: &'a str, kind: RelocationKind) -> CoreRelocation<'a> {
    CoreRelocation { offset: 0, root, access, kind: kind as u32 }
}

fn parsed(builder: Builder) -> Btf {
    Btf::from_vec(builder.finish()).unwrap()
}

/// The value of one access, or the error.
fn ask<'a>(local: &'a Btf, target: &'a Btf, relocation: &CoreRelocation<'a>) -> Result<Option<u64>, String> {
    let mut resolver = Resolver::new(local, target, [relocation.root].into_iter(), Rc::default());
    resolver.resolve(relocation, true).map(|resolution| resolution.value)
}

#[test]
fn flavours_end_names_at_the_last_separator() {
    for (name, essential) in [
        ("sock", "sock"),
        ("sock___old", "sock"),
        ("a___b___c", "a___b"),
        ("___x", "___x"),
        ("x___", "x___"),
        ("a____b", "a____b"),
        ("a___b_", "a"),
        ("a___b____c", "a"),
        ("_a___b", "_a"),
        ("", ""),
        ("\u{e9}___\u{e9}", "\u{e9}"),
    ] {
        assert_eq!(essential_name(name), essential, "{name}");
    }
}

#[test]
fn enums_of_64_bits_stand_for_those_of_32_and_the_reverse() {
    let mut here = Builder::new(false);
    let name = here.string(b"big");
    let (a, b) = (here.string(b"A"), here.string(b"B"));
    let narrow = here.raw(name, 6, false, 2, 4, &[a, 1, b, 2]);
    let here = parsed(here);
    let mut there = Builder::new(false);
    let name = there.string(b"big");
    let (a, b) = (there.string(b"A"), there.string(b"B___x"));
    let wide = there.raw(name, 19, true, 2, 8, &[a, 7, 0x10, b, 0xffff_fffe, 0xffff_ffff]);
    let there = parsed(there);
    let value = |index| ask(&here, &there, &access(narrow, index, RelocationKind::EnumvalValue));
    assert_eq!(value("0"), Ok(Some(0x10_0000_0007)));
    assert_eq!(value("1"), Ok(Some(-2i64 as u64)));
    let value = |index| ask(&there, &here, &access(wide, index, RelocationKind::EnumvalValue));
    assert_eq!((value("0"), value("1")), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!(ask(&here, &there, &access(narrow, "0", RelocationKind::TypeExists)), Ok(Some(1)));
    assert_eq!(ask(&here, &there, &access(narrow, "0", RelocationKind::TypeSize)), Ok(Some(8)));
    // The sizes differ, so the shapes differ too.
    assert_eq!(ask(&here, &there, &access(narrow, "0", RelocationKind::TypeMatches)), Ok(Some(0)));
    assert!(value("2").unwrap_err().contains("no constant"));
}

#[test]
fn pointers_of_32_bit_kernels_have_four_bytes() {
    let side = |long: u32| {
        let mut b = Builder::new(false);
        let int = b.int("long unsigned int", long, false);
        let pointer = b.ptr(int);
        let s = b.composite(4, "s", 2 * long, false, &[("a", int, 0), ("p", pointer, long * 8)]);
        (parsed(b), s)
    };
    let ((here, s), (there, _)) = (side(8), side(4));
    assert_eq!(ask(&here, &there, &access(s, "0:1", RelocationKind::FieldByteSize)), Ok(Some(4)));
    let mut resolver = Resolver::new(&here, &there, [s].into_iter(), Rc::default());
    let resolution = resolver.resolve(&access(s, "0:1", RelocationKind::FieldByteOffset), true).unwrap();
    assert_eq!(resolution.value, Some(4));
    let resized = resolution.resized.unwrap();
    assert_eq!((resized.local, resized.target, resized.harmless), (8, 4, true));
}

#[test]
fn malformed_accesses_are_refused_and_say_why() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let array = b.array(int, 3);
    let s = b.composite(4, "s", 16, false, &[("a", int, 0), ("list", array, 32)]);
    let nameless = b.composite(4, "", 4, false, &[("a", int, 0)]);
    let btf = parsed(b);
    fn fails_in<'a>(btf: &'a Btf, root: TypeId, text: &'a str, kind: RelocationKind) -> String {
        ask(btf, btf, &access(root, text, kind)).unwrap_err()
    }
    let fails = |root, text, kind| fails_in(&btf, root, text, kind);
    let offset = RelocationKind::FieldByteOffset;
    for text in ["", ":", "0:", "0::1", "-1", "+1", " 0", "0:a", "0:4294967295", "99999999999999999999", "0;1"] {
        assert!(fails(s, text, offset).contains("is not numbers between colons"), "{text}");
    }
    assert!(fails(s, "0:2", offset).contains("has no member number 2"));
    assert!(fails(s, "0:1:3", offset).contains("element 3 of an array of 3"));
    assert!(fails(s, "0:0:0", offset).contains("leads into int"));
    assert!(fails(s, "2000000000:0", offset).contains("beyond 512 MiB"));
    let long = ["0"; 65].join(":");
    assert!(fails(s, &long, offset).contains("more than 64 steps"));
    assert!(fails(s, "1", RelocationKind::TypeExists).contains("not \"0\""));
    assert!(fails(s, "0", RelocationKind::EnumvalValue).contains("has no constant"));
    assert!(fails(nameless, "0:0", offset).contains("has no name"));
    assert!(fails(s, "0:1:0", RelocationKind::FieldSigned).contains("has no signed"));
    let unknown = CoreRelocation { offset: 0, root: s, access: "0", kind: 13 };
    assert_eq!(ask(&btf, &btf, &unknown).unwrap_err(), "kind 13 is unknown");
}

#[test]
fn what_is_similar_is_named() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let s = b.composite(4, "task_struct", 8, false, &[("state", int, 0), ("flags", int, 32)]);
    let here = parsed(b);
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    b.composite(4, "task_struct", 8, false, &[("__state", int, 0), ("flags", int, 32)]);
    let there = parsed(b);
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    b.composite(4, "task_structs", 4, false, &[("x", int, 0)]);
    let elsewhere = parsed(b);
    let missing = |target: &Btf| {
        let mut resolver = Resolver::new(&here, target, [s].into_iter(), Rc::default());
        resolver
            .resolve(&access(s, "0:0", RelocationKind::FieldByteOffset), true)
            .unwrap()
            .missing
            .as_deref()
            .unwrap()
            .to_owned()
    };
    assert_eq!(missing(&there), "struct task_struct has no member state; did you mean __state?");
    assert_eq!(missing(&elsewhere), "no type struct task_struct; did you mean task_structs?");
}

#[test]
fn similar_names_are_looked_for_as_long_as_that_costs_little() {
    let mut b = Builder::new(false);
    let roots: Vec<TypeId> =
        (0..5000).map(|number| b.composite(4, &format!("wanted_{number:04}"), 0, false, &[])).collect();
    let here = parsed(b);
    let mut b = Builder::new(false);
    for number in 0..4096 {
        b.composite(4, &format!("wanted_{number:04}_"), 0, false, &[]);
    }
    let there = parsed(b);
    let mut resolver = Resolver::new(&here, &there, roots.iter().copied(), Rc::default());
    let mut hints = |roots: &[TypeId]| -> usize {
        let resolutions =
            roots.iter().map(|root| resolver.resolve(&access(*root, "0", RelocationKind::TypeExists), true));
        resolutions.filter(|one| one.as_ref().unwrap().missing.as_ref().unwrap().contains("did you mean")).count()
    };
    assert_eq!(hints(&roots[..10]), 10);
    assert!(hints(&roots[10..]) < 100);
    // A result that was found once is reused.
    assert_eq!(hints(&roots[..10]), 10);
}

/// A struct of two anonymous members, each of the same next struct of two, and so on: 2^`depth` paths.
fn bush(depth: u32, last: &str) -> (Btf, TypeId) {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let mut inner = b.composite(4, "", 4, false, &[(last, int, 0)]);
    for _ in 0..depth {
        inner = b.composite(4, "", 4, false, &[("", inner, 0), ("", inner, 0)]);
    }
    let s = b.composite(4, "s", 4, false, &[("", inner, 0)]);
    (parsed(b), s)
}

#[test]
fn types_that_never_end_are_given_up_on() {
    let started = Instant::now();
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let s = b.composite(4, "s", 4, false, &[("wanted", int, 0)]);
    let here = parsed(b);
    let (there, _) = bush(40, "other");
    let error = ask(&here, &there, &access(s, "0:0", RelocationKind::FieldByteOffset)).unwrap_err();
    assert_eq!(error, TOO_COMPLEX);
    let (there, _) = bush(70, "other");
    let error = ask(&here, &there, &access(s, "0:0", RelocationKind::FieldByteOffset)).unwrap_err();
    assert!(error.contains("nested more than 64 deep"), "{error}");

    // Typedefs, arrays, pointers, structs and functions that contain themselves: ids count from 1.
    for kind in [RelocationKind::FieldByteOffset, RelocationKind::TypeExists, RelocationKind::TypeMatches] {
        let mut b = Builder::new(false);
        b.refer(8, "s", TypeId(2));
        b.refer(8, "s", TypeId(1));
        b.array(TypeId(3), 2);
        b.refer(8, "a", TypeId(3));
        b.ptr(TypeId(5));
        b.refer(8, "p", TypeId(5));
        b.composite(4, "t", 0, false, &[("", TypeId(7), 0), ("x", TypeId(7), 0)]);
        b.raw(0, 13, false, 2, 8, &[0, 8, 0, 8]);
        b.refer(8, "f", TypeId(8));
        let btf = parsed(b);
        for root in 1..=9 {
            for text in ["0", "0:0", "0:1", "0:0:0:0:0:0", "0:1:1:1:1:1"] {
                let _ = ask(&btf, &btf, &access(TypeId(root), text, kind));
            }
        }
    }
    // The limit allows for an unoptimised build on a busy machine.
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn damaged_types_give_answers_or_errors() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let array = b.array(int, 3);
    let inner = b.composite(5, "", 8, false, &[("x", int, 0), ("y", array, 0)]);
    let s = b.composite(4, "s", 32, true, &[("a", int, 3 << 24), ("", inner, 64), ("list", array, 128)]);
    let name = b.string(b"e");
    let a = b.string(b"A");
    let e = b.raw(name, 6, false, 1, 4, &[a, 1]);
    let bytes = b.finish();
    let good = Btf::parse(&bytes).unwrap();
    let mut noise = Noise(7);
    let mut parsed = 0;
    for _ in 0..4000 {
        let Ok(bad) = Btf::parse(&noise.damage(&bytes)) else { continue };
        parsed += 1;
        for (local, target) in [(&good, &bad), (&bad, &good), (&bad, &bad)] {
            for kind in RelocationKind::ALL {
                for (root, text) in [(s, "0:0"), (s, "0:1:1:2"), (s, "0:2:1"), (e, "0"), (s, "0")] {
                    let _ = ask(local, target, &access(root, text, kind));
                }
            }
        }
    }
    assert!(parsed > 100, "{parsed}");
}

#[test]
fn types_that_contain_themselves_are_found() {
    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    let list = b.composite(4, "list", 16, false, &[("next", TypeId(3), 0), ("x", int, 64)]);
    b.ptr(list);
    let proto = b.raw(0, 13, false, 2, list.0, &[0, 3, 0, 1]);
    b.refer(8, "callback", TypeId(6));
    b.ptr(proto);
    b.array(list, 3);
    assert_eq!(parsed(b).cycle(), None);

    let mut b = Builder::new(false);
    let int = b.int("int", 4, true);
    b.composite(4, "a", 8, false, &[("x", int, 0), ("b", TypeId(3), 32)]);
    b.array(TypeId(4), 1);
    b.refer(10, "", TypeId(2));
    assert_eq!(parsed(b).cycle(), Some(TypeId(2)));

    let mut b = Builder::new(false);
    b.refer(8, "a", TypeId(2));
    b.ptr(TypeId(3));
    b.raw(0, 13, false, 1, 0, &[0, 1]);
    assert_eq!(parsed(b).cycle(), Some(TypeId(1)));
}
