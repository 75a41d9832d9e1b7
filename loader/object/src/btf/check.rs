//! Reading BTF: the header, one walk over all types that builds the index, and every check that later questions rely on.

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::CStr;

use super::{Btf, BtfError, Head, Kind, TypeId, three, two, word};

/// The longest name that is taken, in bytes. The kernel refuses names beyond 511 (`KSYM_NAME_LEN`). A limit keeps a
/// hostile file, whose names all end in the same megabyte of text, from costing the square of its size.
const MAX_NAME: usize = 1024;

const MAGIC: u16 = 0xeb9f;
/// Header bytes up to the end of `str_len`.
const HEADER: usize = 24;
/// Header bytes up to the end of `layout_len`.
const HEADER_WITH_LAYOUT: usize = 32;

fn flaw(offset: usize, what: impl Into<String>) -> BtfError {
    BtfError { offset, type_id: None, what: what.into() }
}

/// A stretch of the data, checked to lie within it.
struct Section {
    start: usize,
    len: usize,
}

impl Section {
    fn end(&self) -> usize {
        self.start + self.len
    }
}

struct Header {
    big_endian: bool,
    types: Section,
    strings: Section,
    layout: Option<Section>,
}

fn header(data: &[u8]) -> Result<Header, BtfError> {
    if data.len() > u32::MAX as usize {
        return Err(flaw(0, format!("{} bytes are more than BTF can address", data.len())));
    }
    let short = || flaw(data.len(), format!("{} bytes are too few for a BTF header of {HEADER}", data.len()));
    let magic = [*data.first().ok_or_else(short)?, *data.get(1).ok_or_else(short)?];
    let big_endian = match (u16::from_le_bytes(magic), u16::from_be_bytes(magic)) {
        (MAGIC, _) => false,
        (_, MAGIC) => true,
        _ => {
            return Err(flaw(
                0,
                format!("begins with {:02x} {:02x}, not with the magic number eb9f", magic[0], magic[1]),
            ));
        }
    };
    if data.len() < HEADER {
        return Err(short());
    }
    let field = |at: usize| word(data, at, big_endian).ok_or_else(short);
    if data[2] != 1 {
        return Err(flaw(2, format!("version {}, only version 1 is known", data[2])));
    }
    if data[3] != 0 {
        return Err(flaw(3, format!("unknown header flags {:#x}", data[3])));
    }
    let header_len = field(4)? as usize;
    if header_len < HEADER || header_len > data.len() {
        return Err(flaw(4, format!("header length {header_len}: {HEADER} to {} would be possible", data.len())));
    }
    let section = |at: usize, name: &str| -> Result<Section, BtfError> {
        let (offset, len) = (field(at)? as usize, field(at + 4)? as usize);
        let start = header_len + offset;
        if start + len > data.len() {
            let end = start + len;
            return Err(flaw(at, format!("the {name} section ends at byte {end}, the data at byte {}", data.len())));
        }
        Ok(Section { start, len })
    };
    let types = section(8, "type")?;
    let strings = section(16, "string")?;
    let layout = if header_len >= HEADER_WITH_LAYOUT { Some(section(24, "layout")?) } else { None };
    if types.start % 4 != 0 {
        return Err(flaw(8, format!("the type section begins at byte {}, not at a multiple of 4", types.start)));
    }
    if types.start < strings.end() && strings.start < types.end() {
        return Err(flaw(16, "the string section overlaps the type section"));
    }
    Ok(Header { big_endian, types, strings, layout })
}

/// Whether no string is longer than [`MAX_NAME`]. Looks in each stretch of that length only for the last NUL.
fn are_short(mut strings: &[u8]) -> bool {
    while let Some(stretch) = strings.get(..=MAX_NAME) {
        match stretch.iter().rposition(|b| *b == 0) {
            Some(end) => strings = &strings[end + 1..],
            None => return false,
        }
    }
    true
}

/// Only BTF that continues another (split BTF) may lack the empty string at the beginning.
const OF_A_MODULE: &str = "perhaps the types of a kernel module, which continue those of its kernel (vmlinux)";

/// The string section, and whether each name must be looked at on its own.
struct Strings<'a> {
    bytes: &'a [u8],
    /// All text is ASCII and every string short: then any offset within is a good name.
    plain: bool,
    /// Bytes of names that may still be looked at one by one.
    left: Cell<usize>,
}

/// Many types can share one long name. Checking names one by one may read at most this many times the bytes of the BTF.
/// A kernel's names have fewer bytes than its BTF.
const MOST_LOOKS: usize = 16;

impl<'a> Strings<'a> {
    /// The section begins at byte `at` of so many bytes of data.
    fn new(bytes: &'a [u8], at: usize, data: usize) -> Result<Self, BtfError> {
        match (bytes.first(), bytes.last()) {
            (Some(0), Some(0)) => {}
            (None, _) => return Err(flaw(at, "the string section is empty")),
            (Some(0), _) => return Err(flaw(at + bytes.len() - 1, "the string section does not end with NUL")),
            (_, Some(0)) => return Err(flaw(at, format!("the string section does not begin with NUL: {OF_A_MODULE}"))),
            _ => return Err(flaw(at, "the string section does not begin with NUL")),
        }
        let plain = bytes.is_ascii() && are_short(bytes);
        Ok(Strings { bytes, plain, left: Cell::new(data.saturating_mul(MOST_LOOKS)) })
    }

    /// Whether all names up to offset `highest` are certainly valid.
    fn are_good(&self, highest: u32) -> bool {
        self.plain && (highest as usize) < self.bytes.len()
    }

    fn check(&self, offset: u32) -> Result<(), String> {
        if self.are_good(offset) {
            return Ok(());
        }
        if offset as usize >= self.bytes.len() {
            return Err(format!("name offset {offset} is past the end of the {} bytes of strings", self.bytes.len()));
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let window = rest.get(..=MAX_NAME).unwrap_or(rest);
        let Ok(name) = CStr::from_bytes_until_nul(window) else {
            return Err(format!("the name at string offset {offset} is longer than {MAX_NAME} bytes"));
        };
        let Some(left) = self.left.get().checked_sub(name.count_bytes()) else {
            return Err("long names are used again and again: checking them takes too long".to_owned());
        };
        self.left.set(left);
        match name.to_str() {
            Ok(_) => Ok(()),
            Err(_) => Err(format!("the name at string offset {offset} is not UTF-8")),
        }
    }
}

/// Bytes that follow a type's head: fixed ones, and ones for each of its `vlen` entries.
fn tail_size(kind: Kind) -> (usize, usize) {
    match kind {
        Kind::Int | Kind::Var | Kind::DeclTag => (4, 0),
        Kind::Array => (12, 0),
        Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => (0, 12),
        Kind::Enum | Kind::FuncProto => (0, 8),
        _ => (0, 0),
    }
}

pub(super) fn parse(data: Cow<'static, [u8]>) -> Result<Btf, BtfError> {
    let header = header(&data)?;
    let strings = (header.strings.start, header.strings.len);
    let mut btf = Btf { data, big_endian: header.big_endian, strings, index: Vec::new() };
    let highest = Walk::new(&btf, &header)?.run()?;
    btf.index = highest.index;
    btf.index.shrink_to_fit();
    // Types may refer to later ones, so whether an id exists is known only now.
    if highest.id.0 as usize >= btf.index.len() {
        let what = format!("refers to type {}, the last is [{}]", highest.id, btf.len());
        return Err(BtfError { offset: highest.at, type_id: Some(highest.by), what });
    }
    Ok(btf)
}

/// What a walk found: where types begin, and the highest type id that anything refers to.
struct Walked {
    index: Vec<u32>,
    id: TypeId,
    by: TypeId,
    at: usize,
}

struct Walk<'a> {
    big_endian: bool,
    /// The data up to the end of the type section.
    types: &'a [u8],
    strings: Strings<'a>,
    layout: &'a [u8],
    at: usize,
    found: Walked,
}

impl<'a> Walk<'a> {
    fn new(btf: &'a Btf, header: &Header) -> Result<Self, BtfError> {
        let slice = |s: &Section| btf.data.get(s.start..s.end()).unwrap_or_default();
        // A type is at least twelve bytes, so the index takes at most a third of the input.
        let mut index = Vec::with_capacity(header.types.len / Head::SIZE + 1);
        index.push(0);
        Ok(Walk {
            big_endian: header.big_endian,
            types: btf.data.get(..header.types.end()).unwrap_or_default(),
            strings: Strings::new(slice(&header.strings), header.strings.start, btf.data.len())?,
            layout: header.layout.as_ref().map(slice).unwrap_or_default(),
            at: header.types.start,
            found: Walked { index, id: TypeId::VOID, by: TypeId::VOID, at: 0 },
        })
    }

    fn run(mut self) -> Result<Walked, BtfError> {
        while self.at < self.types.len() {
            // Both fit: the data is shorter than 4 GiB, and a type takes twelve bytes of it.
            let id = TypeId(self.found.index.len() as u32);
            self.found.index.push(self.at as u32);
            self.at = self.one(id)?;
        }
        Ok(self.found)
    }

    /// Checks the type at `self.at` and returns where the next begins.
    fn one(&mut self, id: TypeId) -> Result<usize, BtfError> {
        let start = self.at;
        let fail = |offset: usize, what: String| BtfError { offset, type_id: Some(id), what };
        let rest = self.types.get(start..).unwrap_or_default();
        let Some((record, rest)) = rest.split_first_chunk() else {
            return Err(fail(start, format!("{} bytes are left in the type section, a type needs 12", rest.len())));
        };
        let head = Head::of(record, start, self.big_endian);
        self.strings.check(head.name).map_err(|what| fail(start, what))?;
        let number = head.kind_number();
        let (kind, (fixed, each)) = match Kind::from_number(number) {
            Some(kind) => (kind, tail_size(kind)),
            None => (Kind::Unknown, self.unknown_size(number).map_err(|what| fail(start + 4, what))?),
        };
        // FUNC keeps its linkage in vlen; for the other kinds without entries `each` is 0.
        let size = fixed + head.vlen() * each;
        let Some(tail) = rest.get(..size) else {
            let (label, count) = (kind.label(), head.vlen());
            let what =
                format!("{label} with {count} entries needs {size} bytes more, the type section has {}", rest.len());
            return Err(fail(start + 4, what));
        };
        let mut entries = Entries { walk: self, id, tail, base: head.tail, each, kind };
        match kind {
            Kind::Int => entries.int(head)?,
            Kind::Array => {
                let [elem, index, _] = entries.highest_of_three();
                self.refers(elem, id, head.tail);
                self.refers(index, id, head.tail + 4);
            }
            Kind::Struct | Kind::Union => entries.members(head)?,
            Kind::FuncProto => {
                let [name, ty] = entries.highest_of_two();
                entries.names(name)?;
                entries.references(ty, 4);
                self.refers(head.arg, id, start + 8);
            }
            Kind::Enum | Kind::Enum64 => {
                if !matches!(head.arg, 1 | 2 | 4 | 8) {
                    return Err(fail(start + 8, format!("{} of {} bytes", kind.label(), head.arg)));
                }
                let highest = match kind {
                    Kind::Enum => entries.highest_of_two()[0],
                    _ => entries.highest_of_three()[0],
                };
                entries.names(highest)?;
            }
            Kind::Datasec => {
                let [var, ..] = entries.highest_of_three();
                entries.references(var, 0);
            }
            Kind::Float if !matches!(head.arg, 2 | 4 | 8 | 12 | 16) => {
                return Err(fail(start + 8, format!("{} of {} bytes", kind.label(), head.arg)));
            }
            Kind::Ptr
            | Kind::Typedef
            | Kind::Volatile
            | Kind::Const
            | Kind::Restrict
            | Kind::Func
            | Kind::Var
            | Kind::DeclTag
            | Kind::TypeTag => self.refers(head.arg, id, start + 8),
            Kind::Float | Kind::Fwd | Kind::Void | Kind::Unknown => {}
        }
        Ok(head.tail + size)
    }

    /// The layout section lists, for every kind its maker knew, the size of what follows the head:
    /// `{ u8 info_sz, u8 elem_sz, u16 flags }`.
    fn unknown_size(&self, number: u32) -> Result<(usize, usize), String> {
        let at = number as usize * 4;
        match self.layout.get(at..at + 2) {
            Some(&[fixed, each]) if number != 0 && fixed % 4 == 0 && each % 4 == 0 => Ok((fixed.into(), each.into())),
            _ => Err(format!("kind {number} is unknown, and no layout section says how long it is")),
        }
    }

    fn refers(&mut self, to: u32, by: TypeId, at: usize) {
        if to > self.found.id.0 {
            (self.found.id, self.found.by, self.found.at) = (TypeId(to), by, at);
        }
    }
}

/// What follows one type's head.
struct Entries<'w, 'a> {
    walk: &'w mut Walk<'a>,
    id: TypeId,
    tail: &'a [u8],
    /// Where `tail` begins in the data.
    base: usize,
    /// Bytes of an entry.
    each: usize,
    kind: Kind,
}

impl Entries<'_, '_> {
    /// The highest value of each of the three words of the entries. Most of a kernel's BTF is entries, and one pass over all
    /// of them is fast. The entries are checked one by one in three cases: a highest value is out of range; it exceeds every
    /// earlier one; or it does not show whether all values are valid.
    fn highest_of_three(&self) -> [u32; 3] {
        let [mut a, mut b, mut c] = [0; 3];
        for entry in self.tail.as_chunks().0 {
            let words = three(entry, self.walk.big_endian);
            (a, b, c) = (a.max(words[0]), b.max(words[1]), c.max(words[2]));
        }
        [a, b, c]
    }

    /// The same of entries of two words.
    fn highest_of_two(&self) -> [u32; 2] {
        let [mut a, mut b] = [0; 2];
        for entry in self.tail.as_chunks().0 {
            let words = two(entry, self.walk.big_endian);
            (a, b) = (a.max(words[0]), b.max(words[1]));
        }
        [a, b]
    }

    fn word(&self, at: usize) -> u32 {
        word(self.tail, at, self.walk.big_endian).unwrap_or(0)
    }

    fn fail(&self, at: usize, what: String) -> BtfError {
        BtfError { offset: self.base + at, type_id: Some(self.id), what: format!("{}: {what}", self.kind.label()) }
    }

    fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        (0..self.tail.len()).step_by(self.each.max(1))
    }

    /// Checks the entries' names, of which the highest begins at `highest`.
    fn names(&self, highest: u32) -> Result<(), BtfError> {
        if self.walk.strings.are_good(highest) {
            return Ok(());
        }
        for at in self.starts() {
            let checked = self.walk.strings.check(self.word(at));
            checked.map_err(|what| self.fail(at, format!("entry {}: {what}", at / self.each.max(1))))?;
        }
        Ok(())
    }

    /// Takes note of the highest type that the entries refer to at byte `at` of each.
    fn references(&mut self, highest: u32, at: usize) {
        if highest > self.walk.found.id.0
            && let Some(start) = self.starts().find(|start| self.word(start + at) == highest)
        {
            self.walk.refers(highest, self.id, self.base + start + at);
        }
    }

    fn int(&self, head: Head) -> Result<(), BtfError> {
        let data = self.word(0);
        let (bits, offset) = (data & 0xff, (data >> 16) & 0xff);
        if !matches!(head.arg, 1 | 2 | 4 | 8 | 16) {
            return Err(self.fail(0, format!("{} bytes", head.arg)));
        }
        if offset + bits > head.arg * 8 {
            return Err(self.fail(0, format!("{bits} bits from bit {offset} do not fit {} bytes", head.arg)));
        }
        Ok(())
    }

    fn members(&mut self, head: Head) -> Result<(), BtfError> {
        let [name, ty, offset] = self.highest_of_three();
        self.names(name)?;
        self.references(ty, 4);
        // As strict as the kernel is with its own BTF. A flexible array may begin at the very end.
        let end = u64::from(head.arg) * 8;
        if u64::from(offset) <= end {
            return Ok(());
        }
        for at in self.starts() {
            let offset = self.word(at + 8);
            let bit = if head.flag() { offset & 0x00ff_ffff } else { offset };
            if u64::from(bit) > end {
                let what = format!("member {} begins at bit {bit}, beyond the {} bytes", at / 12, head.arg);
                return Err(self.fail(at + 8, what));
            }
        }
        Ok(())
    }
}
