//! Small BTF, built type by type, for tests: those of this crate and, with the feature `samples`, those of other crates.

use super::TypeId;

/// Writes BTF, in either byte order. Ids count from 1, in the order of the calls.
pub struct Builder {
    big_endian: bool,
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
    /// Offset of each type in `types`.
    pub starts: Vec<usize>,
}

pub const HEADER: usize = 24;

impl Builder {
    pub fn new(big_endian: bool) -> Self {
        Builder { big_endian, types: Vec::new(), strings: vec![0], count: 0, starts: vec![0] }
    }

    pub fn bytes(&self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub fn string(&mut self, text: &[u8]) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text);
        self.strings.push(0);
        at
    }

    pub fn raw(&mut self, name: u32, kind: u32, flag: bool, vlen: u32, arg: u32, tail: &[u32]) -> TypeId {
        self.starts.push(self.types.len());
        for value in [name, (u32::from(flag) << 31) | (kind << 24) | vlen, arg].iter().chain(tail) {
            self.types.extend_from_slice(&self.bytes(*value));
        }
        self.count += 1;
        TypeId(self.count)
    }

    pub fn int(&mut self, name: &str, size: u32, signed: bool) -> TypeId {
        let name = self.string(name.as_bytes());
        self.raw(name, 1, false, 0, size, &[(u32::from(signed) << 24) | (size * 8)])
    }

    /// A kind that only refers to another type: PTR 2, TYPEDEF 8, VOLATILE 9, CONST 10, RESTRICT 11, FUNC 12, TYPE_TAG 18.
    pub fn refer(&mut self, kind: u32, name: &str, to: TypeId) -> TypeId {
        let name = self.string(name.as_bytes());
        self.raw(name, kind, false, 0, to.0, &[])
    }

    pub fn ptr(&mut self, to: TypeId) -> TypeId {
        self.refer(2, "", to)
    }

    pub fn array(&mut self, elem: TypeId, nelems: u32) -> TypeId {
        self.raw(0, 3, false, 0, 0, &[elem.0, 1, nelems])
    }

    /// Struct (4) or union (5) from `(name, type, offset word)`; the flag says that the word's top byte is a bitfield's width.
    pub fn composite(
        &mut self,
        kind: u32,
        name: &str,
        size: u32,
        flag: bool,
        members: &[(&str, TypeId, u32)],
    ) -> TypeId {
        let name = self.string(name.as_bytes());
        let mut tail = Vec::new();
        for (name, ty, offset) in members {
            tail.extend([self.string(name.as_bytes()), ty.0, *offset]);
        }
        self.raw(name, kind, flag, members.len() as u32, size, &tail)
    }

    pub fn enumeration(&mut self, name: &str, size: u32, signed: bool, values: &[(&str, i64)]) -> TypeId {
        let name = self.string(name.as_bytes());
        let mut tail = Vec::new();
        for (name, value) in values {
            tail.push(self.string(name.as_bytes()));
            tail.push(*value as u32);
            if size == 8 {
                tail.push((*value >> 32) as u32);
            }
        }
        self.raw(name, if size == 8 { 19 } else { 6 }, signed, values.len() as u32, size, &tail)
    }

    pub fn proto(&mut self, returns: TypeId, params: &[(&str, TypeId)]) -> TypeId {
        let mut tail = Vec::new();
        for (name, ty) in params {
            tail.extend([self.string(name.as_bytes()), ty.0]);
        }
        self.raw(0, 13, false, params.len() as u32, returns.0, &tail)
    }

    pub fn header(&self, len: u32) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(if self.big_endian { [0xeb, 0x9f] } else { [0x9f, 0xeb] });
        out.extend([1, 0]);
        for value in [len, 0, self.types.len() as u32, self.types.len() as u32, self.strings.len() as u32] {
            out.extend(self.bytes(value));
        }
        out
    }

    pub fn finish(&self) -> Vec<u8> {
        let mut out = self.header(HEADER as u32);
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }

    /// Ends the BTF with a layout section that has an entry `(kind, fixed bytes, bytes an entry)` for each kind.
    pub fn finish_with_layout(&self, layout: &[(usize, u8, u8)]) -> Vec<u8> {
        let mut out = self.header(32);
        let table_len = layout.iter().map(|(kind, ..)| kind * 4 + 4).max().unwrap_or(0);
        let mut table = vec![0; table_len];
        for (kind, fixed, each) in layout {
            table[kind * 4] = *fixed;
            table[kind * 4 + 1] = *each;
        }
        let at = (self.types.len() + self.strings.len()) as u32;
        out.extend(self.bytes(at));
        out.extend(self.bytes(table_len as u32));
        out.extend(&self.types);
        out.extend(&self.strings);
        out.extend(table);
        out
    }
}

/// Ids of [`sample`]'s types.
pub struct Sample {
    pub int: TypeId,
    pub byte: TypeId,
    pub bytes16: TypeId,
    pub common: TypeId,
    pub sock: TypeId,
    pub state: TypeId,
    pub wide: TypeId,
    pub proto: TypeId,
    pub grid: TypeId,
}

/// The sample holds one of everything:
///
/// ```c
/// struct addr { union { unsigned char b[16]; int w; } u; };            // 16 bytes
/// struct common { union { int daddr; unsigned char d8; };              // byte 0, unnamed
///                 struct { unsigned char port; unsigned char num:3; unsigned char kern:1; };  // byte 4, unnamed
///                 enum state st; };                                     // byte 8; 12 bytes
/// struct sock { struct common c; struct sock *next; const char_t name[16]; struct addr a[2]; };  // 12+4, 8, 16, 32: 72
/// enum state { OPEN = 1, SHUT = -1 }; enum { BIG = 0x100000002, TOP = U64_MAX };
/// typedef void (*btf_trace_it)(void *__data, const struct sock *sk, int err);
/// int it(struct sock *); int grid[3][5];
/// ```
pub fn sample(big_endian: bool) -> (Vec<u8>, Sample) {
    let mut b = Builder::new(big_endian);
    let int = b.int("int", 4, true);
    let byte = b.int("unsigned char", 1, false);
    let char_t = b.refer(8, "char_t", byte);
    let bytes16 = b.array(byte, 16);
    let inner = b.composite(5, "", 16, false, &[("b", bytes16, 0), ("w", int, 0)]);
    let addr = b.composite(4, "addr", 16, false, &[("u", inner, 0)]);
    let state = b.enumeration("state", 4, true, &[("OPEN", 1), ("SHUT", -1)]);
    let ip = b.composite(5, "", 4, false, &[("daddr", int, 0), ("d8", byte, 0)]);
    let bits =
        b.composite(4, "", 2, true, &[("port", byte, 0), ("num", byte, (3 << 24) | 8), ("kern", byte, (1 << 24) | 11)]);
    let common = b.composite(4, "common", 12, false, &[("", ip, 0), ("", bits, 32), ("st", state, 64)]);
    let konst = b.refer(10, "", char_t);
    let name = b.array(konst, 16);
    let addrs = b.array(addr, 2);
    let sock_id = TypeId(b.count + 2);
    let next = b.ptr(sock_id);
    let members = [("c", common, 0), ("next", next, 128), ("name", name, 192), ("a", addrs, 320)];
    let sock = b.composite(4, "sock", 72, false, &members);
    assert_eq!(sock, sock_id);
    let wide = b.enumeration("", 8, false, &[("BIG", 0x1_0000_0002), ("TOP", -1)]);
    let void_ptr = b.ptr(TypeId::VOID);
    let konst_sock = b.refer(10, "", sock);
    let sk = b.ptr(konst_sock);
    let proto = b.proto(TypeId::VOID, &[("__data", void_ptr), ("sk", sk), ("err", int)]);
    let fn_ptr = b.ptr(proto);
    b.refer(8, "btf_trace_it", fn_ptr);
    let it = b.proto(int, &[("sk", next)]);
    b.refer(12, "it", it);
    let row = b.array(int, 5);
    let grid = b.array(row, 3);
    (b.finish(), Sample { int, byte, bytes16, common, sock, state, wide, proto, grid })
}
