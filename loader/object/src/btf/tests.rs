//! BTF built by hand, type by type, and compared with its source; damaged BTF; a real kernel's BTF compared with bpftool's
//! output.

use std::process::Command;

use super::samples::{Builder, HEADER, sample};
use super::*;

#[test]
fn says_what_was_put_in_whatever_the_byte_order() {
    for big_endian in [false, true] {
        let (bytes, ids) = sample(big_endian);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.len(), 26);
        assert_eq!(btf.ids().count(), 26);
        assert_eq!(btf.kind(TypeId::VOID), Kind::Void);
        assert_eq!(btf.kind(TypeId(27)), Kind::Void);
        assert_eq!(btf.name(TypeId(27)), "");
        assert_eq!(btf.find(Kind::Struct, "sock"), Some(ids.sock));
        assert_eq!(btf.find(Kind::Union, "sock"), None);
        assert_eq!(btf.find(Kind::Struct, "soc"), None);
        assert_eq!(btf.find(Kind::Struct, "ock"), None);
        assert_eq!(btf.find(Kind::Struct, ""), None);
        let int = Int { size: 4, bits: 32, bit_offset: 0, signed: true, is_char: false, is_bool: false };
        assert_eq!(btf.int(ids.int), Some(int));
        assert_eq!(btf.int(ids.sock), None);
        assert_eq!(btf.array(ids.bytes16), Some(Array { elem: ids.byte, index: TypeId(1), nelems: 16 }));

        let common: Vec<Member> = btf.members(ids.common).collect();
        assert_eq!(common.len(), 3);
        assert_eq!((common[1].name, common[1].bit_offset, common[1].bitfield_size), ("", 32, 0));
        let bits: Vec<_> = btf.members(common[1].ty).map(|m| (m.name, m.bit_offset, m.bitfield_size)).collect();
        assert_eq!(bits, [("port", 0, 0), ("num", 8, 3), ("kern", 11, 1)]);

        let values = |id| btf.enumerators(id).map(|e| (e.name, e.value)).collect::<Vec<_>>();
        assert_eq!(values(ids.state), [("OPEN", 1), ("SHUT", -1)]);
        assert_eq!(values(ids.wide), [("BIG", 0x1_0000_0002), ("TOP", i128::from(u64::MAX))]);
        assert!(values(ids.sock).is_empty());

        let params: Vec<_> = btf.proto_params(ids.proto).map(|p| p.name).collect();
        assert_eq!(params, ["__data", "sk", "err"]);
        assert_eq!(btf.tracepoint_args("it"), Some(2));
        assert_eq!(btf.tracepoint_args("that"), None);
        let func = btf.find(Kind::Func, "it").unwrap();
        assert_eq!(btf.proto_return(btf.target(func)), ids.int);
    }
}

#[test]
fn sizes_and_places() {
    for big_endian in [false, true] {
        let (bytes, ids) = sample(big_endian);
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.size_of(ids.sock), Some(72));
        assert_eq!(btf.size_of(ids.grid), Some(60));
        assert_eq!(btf.size_of(ids.wide), Some(8));
        assert_eq!(btf.size_of(ids.proto), None);
        assert_eq!(btf.size_of(TypeId::VOID), None);

        let place = |path| btf.field("sock", path).map(|f| (f.bit_offset, f.bitfield_size, f.size));
        assert_eq!(place("c"), Some((0, 0, 12)));
        assert_eq!(place("next"), Some((128, 0, 8)));
        assert_eq!(place("name"), Some((192, 0, 16)));
        assert_eq!(place("a"), Some((320, 0, 32)));
        assert_eq!(place("c.daddr"), Some((0, 0, 4)));
        assert_eq!(place("c.d8"), Some((0, 0, 1)));
        assert_eq!(place("c.port"), Some((32, 0, 1)));
        assert_eq!(place("c.num"), Some((40, 3, 1)));
        assert_eq!(place("c.kern"), Some((43, 1, 1)));
        assert_eq!(place("c.st"), Some((64, 0, 4)));
        for missing in ["", ".", "c.", "x", "c.x", "next.c", "c.port.x", "a.u"] {
            assert_eq!(place(missing), None, "{missing}");
        }
        assert_eq!(btf.field("nothing", "c"), None);
        assert_eq!(btf.field("addr", "u.b").unwrap().byte_offset(), Some(0));
        assert_eq!(btf.field("sock", "c.num").unwrap().byte_offset(), None);
    }
}

#[test]
fn bitfields_of_old_compilers() {
    let mut b = Builder::new(false);
    let name = b.string(b"unsigned int");
    // Five bits that begin at bit 3 of a four-byte unit.
    let odd = b.raw(name, 1, false, 0, 4, &[(3 << 16) | 5]);
    let st = b.composite(4, "old", 8, false, &[("flags", odd, 32)]);
    let btf = Btf::parse(&b.finish()).unwrap();
    let member = btf.members(st).next().unwrap();
    assert_eq!((member.bit_offset, member.bitfield_size), (35, 5));
}

#[test]
fn layout_section_makes_unknown_kinds_passable() {
    let mut b = Builder::new(false);
    b.raw(0, 77, false, 2, 0, &[1, 2, 3, 4, 5]);
    let int = b.int("int", 4, true);
    let error = Btf::parse(&b.finish()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not valid BTF: type [1]: kind 77 is unknown, and no layout section says how long it is (byte 28)"
    );
    let btf = Btf::parse(&b.finish_with_layout(&[(77, 4, 8)])).unwrap();
    assert_eq!(btf.kind(TypeId(1)), Kind::Unknown);
    assert_eq!(btf.size_of(TypeId(1)), None);
    assert_eq!(btf.find(Kind::Int, "int"), Some(int));
    assert!(Btf::parse(&b.finish_with_layout(&[(77, 3, 8)])).is_err());
    assert!(Btf::parse(&b.finish_with_layout(&[(76, 4, 8)])).is_err());
}

/// Asks every question that the parser answers.
fn interrogate(btf: &Btf) {
    for id in btf.ids().chain([TypeId::VOID, TypeId(u32::MAX)]) {
        let _ =
            (btf.kind(id), btf.name(id), btf.size_of(id), btf.resolve(id), btf.target(id), btf.array(id), btf.int(id));
        let _ = (btf.members(id).count(), btf.proto_params(id).count(), btf.enumerators(id).count());
        let _ = (btf.section_vars(id).count(), btf.proto_return(id), btf.fwd_is_union(id), btf.enum_is_signed(id));
        let _ = (btf.find_member(id, "kern"), btf.field_in(id, "c.kern"));
    }
    let _ = (btf.field("sock", "c.kern"), btf.tracepoint_args("it"));
}

#[test]
fn types_that_never_end() {
    let mut b = Builder::new(false);
    let typedef = b.refer(8, "me", TypeId(1));
    let looped = b.array(TypeId(2), 3);
    let ping = b.refer(9, "", TypeId(4));
    b.refer(10, "", ping);
    let pointer = b.ptr(TypeId(5));
    let nested = b.composite(4, "nested", 4, false, &[("", TypeId(6), 0)]);
    let mut huge = b.int("int", 4, true);
    for _ in 0..5 {
        huge = b.array(huge, u32::MAX);
    }
    let btf = Btf::parse(&b.finish()).unwrap();
    assert_eq!(btf.resolve(typedef), TypeId::VOID);
    assert_eq!(btf.resolve(ping), TypeId::VOID);
    assert_eq!(btf.size_of(typedef), None);
    assert_eq!(btf.size_of(looped), None);
    assert_eq!(btf.size_of(pointer), Some(8));
    assert_eq!(btf.size_of(huge), None);
    assert_eq!(btf.find_member(nested, "x"), None);
    interrogate(&btf);
}

/// Each level holds the next one twice: 2^40 paths lead to the bottom, which has no such member.
#[test]
fn types_that_double_at_every_level() {
    let mut b = Builder::new(false);
    for level in 1..=40 {
        b.composite(
            5,
            if level == 1 { "top" } else { "" },
            4,
            false,
            &[("", TypeId(level + 1), 0), ("", TypeId(level + 1), 0)],
        );
    }
    b.int("int", 4, true);
    let btf = Btf::parse(&b.finish()).unwrap();
    assert_eq!(btf.field("top", "x"), None);
}

#[test]
fn names_that_share_an_end_cost_no_more_than_others() {
    let mut b = Builder::new(false);
    let at = b.string(&vec![b'a'; 1 << 20]);
    for n in 0..10_000 {
        b.raw(at + n, 7, false, 0, 0, &[]);
    }
    let error = Btf::parse(&b.finish()).unwrap_err();
    assert_eq!(error.type_id, Some(TypeId(1)));
    assert!(error.what.contains("longer than 1024"), "{error}");
}

/// A damaged byte range, and words that the error must contain.
struct Damage {
    what: &'static str,
    at: usize,
    bytes: Vec<u8>,
    says: &'static [&'static str],
}

#[test]
fn damage_is_named() {
    let (good, ids) = sample(false);
    let mut builder = Builder::new(false);
    // The sample's types begin directly after the header, in order. A walk finds a type's start.
    let start = |id: TypeId| Btf::parse(&good).unwrap().index[id.0 as usize] as usize;
    let word = |v: u32| v.to_le_bytes().to_vec();
    let len = good.len() as u32;
    let damages = [
        Damage { what: "magic", at: 0, bytes: vec![0x7f, 0x45], says: &["begins with 7f 45", "eb9f"] },
        Damage { what: "version", at: 2, bytes: vec![2], says: &["version 2", "(byte 2)"] },
        Damage { what: "flags", at: 3, bytes: vec![1], says: &["flags 0x1"] },
        Damage { what: "short header", at: 4, bytes: word(23), says: &["header length 23"] },
        Damage { what: "long header", at: 4, bytes: word(len + 1), says: &["header length"] },
        Damage { what: "types beyond", at: 12, bytes: word(len), says: &["type section ends at byte"] },
        Damage { what: "huge type offset", at: 8, bytes: word(u32::MAX), says: &["type section ends at byte"] },
        Damage { what: "unaligned types", at: 8, bytes: word(2), says: &["multiple of 4"] },
        Damage { what: "strings beyond", at: 20, bytes: word(u32::MAX), says: &["string section ends at byte"] },
        Damage { what: "no strings", at: 20, bytes: word(0), says: &["string section is empty"] },
        Damage { what: "overlap", at: 16, bytes: word(0), says: &["overlaps"] },
        Damage { what: "last NUL gone", at: good.len() - 1, bytes: vec![b'x'], says: &["does not end with NUL"] },
        Damage {
            what: "first NUL gone",
            at: HEADER + u32::from_le_bytes(good[16..20].try_into().unwrap()) as usize,
            bytes: vec![b'x'],
            says: &["does not begin with NUL"],
        },
        Damage { what: "name past end", at: start(ids.sock), bytes: word(len), says: &["type [15]", "past the end"] },
        Damage {
            what: "member name past end",
            at: start(ids.sock) + 12 + 12,
            bytes: word(1 << 30),
            says: &["type [15]", "STRUCT", "entry 1", "past the end"],
        },
        Damage {
            what: "member type",
            at: start(ids.sock) + 12 + 4,
            bytes: word(0x00ff_ffff),
            says: &["type [15]", "refers to type [16777215]", "last is [26]"],
        },
        Damage {
            what: "member beyond struct",
            at: start(ids.sock) + 12 + 8,
            bytes: word(72 * 8 + 1),
            says: &["member 0 begins at bit 577", "beyond the 72 bytes"],
        },
        Damage { what: "target", at: start(ids.grid) - 24 + 12, bytes: word(27), says: &["refers to type [27]"] },
        Damage {
            what: "sixteen million members",
            at: start(ids.sock) + 4,
            bytes: word((4 << 24) | 0x00ff_ffff),
            says: &["type [15]", "STRUCT with 16777215 entries", "the type section has"],
        },
        Damage { what: "kind 0", at: start(ids.int) + 4, bytes: word(0), says: &["type [1]", "kind 0 is unknown"] },
        Damage { what: "kind 20", at: start(ids.int) + 4, bytes: word(20 << 24), says: &["kind 20 is unknown"] },
        Damage { what: "int size", at: start(ids.int) + 8, bytes: word(3), says: &["INT: 3 bytes"] },
        Damage { what: "int bits", at: start(ids.int) + 12, bytes: word(33), says: &["33 bits from bit 0"] },
        Damage { what: "enum size", at: start(ids.state) + 8, bytes: word(3), says: &["ENUM of 3 bytes"] },
    ];
    for damage in &damages {
        let mut bad = good.clone();
        bad[damage.at..damage.at + damage.bytes.len()].copy_from_slice(&damage.bytes);
        let error = Btf::parse(&bad).expect_err(damage.what).to_string();
        for word in damage.says {
            assert!(error.contains(word), "{}: {error:?} lacks {word:?}", damage.what);
        }
    }
    let bad_name = builder.string(b"\xff\xfe");
    builder.raw(bad_name, 7, false, 0, 0, &[]);
    assert!(Btf::parse(&builder.finish()).unwrap_err().what.contains("not UTF-8"));
}

/// A line of source in the string section (`.BTF.ext` refers to it) may hold any bytes; only names must be text.
#[test]
fn strings_that_are_no_names_may_be_anything() {
    let mut b = Builder::new(false);
    b.string(b"// caf\xe9");
    let fine = b.string("größe".as_bytes());
    b.raw(fine, 7, false, 0, 0, &[]);
    let bytes = b.finish();
    assert_eq!(Btf::parse(&bytes).unwrap().name(TypeId(1)), "größe");
    // An offset into the middle of a letter.
    let mut b = Builder::new(false);
    let fine = b.string("größe".as_bytes());
    b.raw(fine + 3, 7, false, 0, 0, &[]);
    assert!(Btf::parse(&b.finish()).unwrap_err().what.contains("not UTF-8"));
}

#[test]
fn every_truncation_is_refused() {
    for big_endian in [false, true] {
        let (good, _) = sample(big_endian);
        for len in 0..good.len() {
            assert!(Btf::parse(&good[..len]).is_err(), "{len} bytes");
        }
        let mut longer = good.clone();
        longer.extend([1, 2, 3]);
        assert!(Btf::parse(&longer).is_ok(), "what follows the sections is nobody's");
    }
}

/// Deterministic noise.
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Overwrites one to four places with values that parsers often handle wrongly.
    pub(crate) fn damage(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bad = good.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bad.len());
            match self.below(4) {
                0 => bad[at] ^= 1 << self.below(8),
                1 => bad[at] = self.next() as u8,
                2 => bad[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                _ => {
                    let value = [0, 1, u32::MAX, 0x7fff_ffff, 0x8000_0000, self.below(40) as u32][self.below(6)];
                    let at = at & !3;
                    let end = (at + 4).min(bad.len());
                    bad[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                }
            }
        }
        bad
    }
}

#[test]
fn noise_never_panics() {
    let mut accepted = 0;
    for big_endian in [false, true] {
        let (good, _) = sample(big_endian);
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        for _ in 0..5_000 {
            if let Ok(btf) = Btf::parse(&noise.damage(&good)) {
                accepted += 1;
                interrogate(&btf);
                let entries = crate::cdef::parse_list("? struct sock\n? enum state\n? btf_trace_it").unwrap();
                let _ = crate::cdef::header(&btf, &entries, "noise");
            }
        }
    }
    assert!(accepted > 500, "the noise must also make valid BTF, or nothing behind the checks was tried: {accepted}");
}

/// A type as we read it, in the words of `bpftool btf dump file ... format raw`, as far as bpftool's versions agree on them.
fn as_bpftool(btf: &Btf, id: TypeId) -> (String, Vec<String>) {
    let kind = btf.kind(id);
    let name = |name: &str| if name.is_empty() { "(anon)".to_owned() } else { name.to_owned() };
    let mut head = format!("[{}] {} '{}'", id.0, kind.label(), name(btf.name(id)));
    let mut lines = Vec::new();
    match kind {
        Kind::Int => {
            let int = btf.int(id).unwrap();
            head += &format!(" size={} bits_offset={} nr_bits={}", int.size, int.bit_offset, int.bits);
        }
        Kind::Ptr
        | Kind::Typedef
        | Kind::Const
        | Kind::Volatile
        | Kind::Restrict
        | Kind::TypeTag
        | Kind::Func
        | Kind::DeclTag
        | Kind::Var => head += &format!(" type_id={}", btf.target(id).0),
        Kind::Array => {
            let array = btf.array(id).unwrap();
            head += &format!(" type_id={} index_type_id={} nr_elems={}", array.elem.0, array.index.0, array.nelems);
        }
        Kind::Struct | Kind::Union => {
            head += &format!(" size={} vlen={}", btf.size_of(id).unwrap(), btf.members(id).count());
            for m in btf.members(id) {
                let mut line = format!("'{}' type_id={} bits_offset={}", name(m.name), m.ty.0, m.bit_offset);
                if m.bitfield_size > 0 {
                    line += &format!(" bitfield_size={}", m.bitfield_size);
                }
                lines.push(line);
            }
        }
        Kind::Enum | Kind::Enum64 => {
            let sign = if btf.enum_is_signed(id) { "SIGNED" } else { "UNSIGNED" };
            head += &format!(" encoding={sign} size={} vlen={}", btf.size_of(id).unwrap(), btf.enumerators(id).count());
            for e in btf.enumerators(id) {
                let suffix = match (kind, btf.enum_is_signed(id)) {
                    (Kind::Enum64, true) => "LL",
                    (Kind::Enum64, false) => "ULL",
                    _ => "",
                };
                lines.push(format!("'{}' val={}{suffix}", name(e.name), e.value));
            }
        }
        Kind::Fwd => head += &format!(" fwd_kind={}", if btf.fwd_is_union(id) { "union" } else { "struct" }),
        Kind::FuncProto => {
            head += &format!(" ret_type_id={} vlen={}", btf.proto_return(id).0, btf.proto_params(id).count());
            lines.extend(btf.proto_params(id).map(|p| format!("'{}' type_id={}", name(p.name), p.ty.0)));
        }
        Kind::Datasec => {
            head += &format!(" size={} vlen={}", btf.size_of(id).unwrap(), btf.section_vars(id).count());
            lines.extend(
                btf.section_vars(id).map(|v| format!("type_id={} offset={} size={}", v.var.0, v.offset, v.size)),
            );
        }
        Kind::Float => head += &format!(" size={}", btf.size_of(id).unwrap()),
        Kind::Void | Kind::Unknown => {}
    }
    (head, lines)
}

/// True if the line is the expected one, or begins with it: bpftool adds linkage and encoding, which this test does not ask.
fn begins(line: &str, ours: &str) -> bool {
    line.strip_prefix(ours).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[test]
fn the_running_kernel_as_bpftool_sees_it() {
    let path = "/sys/kernel/btf/vmlinux";
    let Ok(bytes) = std::fs::read(path) else { return println!("skipped: no {path}") };
    let dump = match Command::new("bpftool").args(["btf", "dump", "file", path, "format", "raw"]).output() {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap(),
        _ => return println!("skipped: no bpftool that dumps {path}"),
    };
    if !dump.contains("encoding=UNSIGNED size=") {
        return println!("skipped: this bpftool does not know the signs of enums");
    }
    let btf = Btf::parse(&bytes).unwrap();
    let mut theirs = dump.lines();
    let mut lines = 0;
    for id in btf.ids() {
        let (head, entries) = as_bpftool(&btf, id);
        for ours in std::iter::once(head).chain(entries) {
            let line = theirs.next().unwrap_or_else(|| panic!("bpftool's dump ends before {ours:?}")).trim_start();
            assert!(begins(line, &ours), "bpftool: {line:?}\nxctl:    {ours:?}");
            lines += 1;
        }
    }
    assert_eq!(theirs.next(), None, "bpftool has more");
    println!("compared {lines} lines of {} types", btf.len());
}
