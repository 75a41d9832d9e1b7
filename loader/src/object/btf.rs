//! BTF: the types of a kernel or of a BPF object, as data.
//!
//! The bytes stay as they are, and an index of one `u32` a type says where each type begins; a type is decoded when it
//! is asked for. [`Btf::parse`] checks everything that could go wrong later, so that the questions themselves cannot
//! fail: a name is always text, a type id always a type. What a well-formed file may still do, such as a typedef of
//! itself, each question handles by a limit.
//!
//! The format is that of the kernel's `include/uapi/linux/btf.h`, with the wider `vlen` and `kind` fields and the layout
//! section that newer kernels define. Either byte order is read. Split BTF (of kernel modules) is not.

mod check;
mod cycle;
mod query;
mod subset;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;

pub use query::Field;
pub use subset::Subset;

/// Steps through typedefs, qualifiers, arrays or pointers after which a type counts as endless.
///
/// The kernel stops at 32 (`MAX_RESOLVE_DEPTH` in kernel/bpf/btf.c).
pub(crate) const MAX_DEPTH: usize = 64;

/// A type's number in its BTF: 0 is void, types count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u32);

impl TypeId {
    /// No type: C's `void`, or "there is none".
    pub const VOID: TypeId = TypeId(0);

    /// True for [`TypeId::VOID`].
    pub fn is_void(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.0)
    }
}

/// What a type is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Type 0, and any id that the BTF does not have.
    Void,
    /// An integer, `char` and `_Bool` included.
    Int,
    /// A pointer.
    Ptr,
    /// An array with a fixed number of elements (0 for a flexible one).
    Array,
    /// A struct.
    Struct,
    /// A union.
    Union,
    /// An enum of up to 32 bits a value.
    Enum,
    /// A struct or union of which only the name is known.
    Fwd,
    /// A typedef.
    Typedef,
    /// `volatile`
    Volatile,
    /// `const`
    Const,
    /// `restrict`
    Restrict,
    /// A function; its parameters are in the function prototype it refers to.
    Func,
    /// A function prototype.
    FuncProto,
    /// A global variable.
    Var,
    /// A section and the variables in it.
    Datasec,
    /// A floating-point number.
    Float,
    /// `__attribute__((btf_decl_tag("...")))`
    DeclTag,
    /// `__attribute__((btf_type_tag("...")))`
    TypeTag,
    /// An enum of 64 bits a value.
    Enum64,
    /// A kind younger than this parser, whose size the BTF's own layout section gave.
    Unknown,
}

impl Kind {
    fn from_number(number: u32) -> Option<Kind> {
        Some(match number {
            1 => Kind::Int,
            2 => Kind::Ptr,
            3 => Kind::Array,
            4 => Kind::Struct,
            5 => Kind::Union,
            6 => Kind::Enum,
            7 => Kind::Fwd,
            8 => Kind::Typedef,
            9 => Kind::Volatile,
            10 => Kind::Const,
            11 => Kind::Restrict,
            12 => Kind::Func,
            13 => Kind::FuncProto,
            14 => Kind::Var,
            15 => Kind::Datasec,
            16 => Kind::Float,
            17 => Kind::DeclTag,
            18 => Kind::TypeTag,
            19 => Kind::Enum64,
            _ => return None,
        })
    }

    /// True for what only wraps another type without changing what it holds: typedefs, qualifiers, type tags.
    pub fn is_modifier(self) -> bool {
        matches!(self, Kind::Typedef | Kind::Volatile | Kind::Const | Kind::Restrict | Kind::TypeTag)
    }

    /// True for structs and unions.
    pub fn is_composite(self) -> bool {
        matches!(self, Kind::Struct | Kind::Union)
    }

    /// True for enums of either width.
    pub fn is_enum(self) -> bool {
        matches!(self, Kind::Enum | Kind::Enum64)
    }

    /// The kind's name in the style of the kernel's `BTF_KIND_*`.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Void => "VOID",
            Kind::Int => "INT",
            Kind::Ptr => "PTR",
            Kind::Array => "ARRAY",
            Kind::Struct => "STRUCT",
            Kind::Union => "UNION",
            Kind::Enum => "ENUM",
            Kind::Fwd => "FWD",
            Kind::Typedef => "TYPEDEF",
            Kind::Volatile => "VOLATILE",
            Kind::Const => "CONST",
            Kind::Restrict => "RESTRICT",
            Kind::Func => "FUNC",
            Kind::FuncProto => "FUNC_PROTO",
            Kind::Var => "VAR",
            Kind::Datasec => "DATASEC",
            Kind::Float => "FLOAT",
            Kind::DeclTag => "DECL_TAG",
            Kind::TypeTag => "TYPE_TAG",
            Kind::Enum64 => "ENUM64",
            Kind::Unknown => "UNKNOWN",
        }
    }
}

/// A member of a struct or union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// Its name; empty for an anonymous struct or union.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Where it begins, in bits from the beginning of the struct.
    pub bit_offset: u32,
    /// Its width in bits if it is a bitfield, else 0.
    pub bitfield_size: u32,
}

/// A parameter of a function prototype. A last parameter without name and of type void stands for `...`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// Its name; often empty.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
}

/// A constant of an enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enumerator<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value: wide enough for every `i64` and every `u64`.
    pub value: i128,
}

/// What an array holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// The element's type.
    pub elem: TypeId,
    /// The type that indexes it (of no meaning in C).
    pub index: TypeId,
    /// How many elements; 0 for a flexible array.
    pub nelems: u32,
}

/// How an integer is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    /// Storage in bytes.
    pub size: u32,
    /// Bits in use, at most 8 times `size`.
    pub bits: u32,
    /// The first bit in use: not 0 only for bitfields as old compilers described them.
    pub bit_offset: u32,
    /// Signed.
    pub signed: bool,
    /// Said to be a character. Compilers rarely say so, even for `char`.
    pub is_char: bool,
    /// A `_Bool`.
    pub is_bool: bool,
}

/// A variable in a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionVar {
    /// The variable ([`Kind::Var`], or [`Kind::Func`] for `extern` functions).
    pub var: TypeId,
    /// Where it lies, in bytes from the beginning of the section. 0 in an object that was not linked by libbpf yet.
    pub offset: u32,
    /// Its size in bytes.
    pub size: u32,
}

/// Why bytes are not valid BTF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BtfError {
    /// Byte offset of the flaw in the BTF data.
    pub offset: usize,
    /// The type it is in, when it is in one.
    pub type_id: Option<TypeId>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for BtfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not valid BTF: ")?;
        if let Some(id) = self.type_id {
            write!(f, "type {id}: ")?;
        }
        write!(f, "{} (byte {})", self.what, self.offset)
    }
}

impl std::error::Error for BtfError {}

/// All types of a kernel or of a BPF object.
#[derive(Clone)]
pub struct Btf {
    data: Cow<'static, [u8]>,
    big_endian: bool,
    /// Where the string section begins, and its length, in bytes.
    strings: (usize, usize),
    /// Byte offset of each type in `data`. Entry 0 stands for void and means nothing.
    index: Vec<u32>,
}

impl fmt::Debug for Btf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Btf").field("bytes", &self.data.len()).field("types", &self.len()).finish()
    }
}

/// The twelve bytes that every type begins with.
#[derive(Clone, Copy)]
struct Head {
    name: u32,
    info: u32,
    /// Size in bytes or type id, by kind.
    arg: u32,
    /// Where what follows them begins in the data.
    tail: usize,
}

impl Head {
    const SIZE: usize = 12;

    /// From the record that begins at byte `at` of the data.
    #[inline]
    fn of(record: &[u8; Self::SIZE], at: usize, big_endian: bool) -> Head {
        let [name, info, arg] = three(record, big_endian);
        Head { name, info, arg, tail: at + Head::SIZE }
    }

    fn kind_number(self) -> u32 {
        (self.info >> 24) & 0x7f
    }

    fn vlen(self) -> usize {
        (self.info & 0x00ff_ffff) as usize
    }

    fn flag(self) -> bool {
        self.info >> 31 == 1
    }
}

fn word(bytes: &[u8], at: usize, big_endian: bool) -> Option<u32> {
    Some(of_four(*bytes.get(at..)?.first_chunk()?, big_endian))
}

/// The words of a record or an entry of three. (Written out, since a loop would stay one where code is to be small.)
#[inline]
fn three(bytes: &[u8; 12], big_endian: bool) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
    [of_four([a, b, c, d], big_endian), of_four([e, f, g, h], big_endian), of_four([i, j, k, l], big_endian)]
}

/// The words of an entry of two.
#[inline]
fn two(bytes: &[u8; 8], big_endian: bool) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = *bytes;
    [of_four([a, b, c, d], big_endian), of_four([e, f, g, h], big_endian)]
}

#[inline]
fn of_four(bytes: [u8; 4], big_endian: bool) -> u32 {
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

impl Btf {
    /// Reads and checks BTF; the bytes are copied. Costs a few milliseconds and half a megabyte on top of the bytes for
    /// a whole kernel.
    ///
    /// # Errors
    /// [`BtfError`] says what is wrong, in which type and at which byte.
    pub fn parse(bytes: &[u8]) -> Result<Btf, BtfError> {
        Btf::from_vec(bytes.to_vec())
    }

    /// BTF without types, for an object that has none.
    pub fn nothing() -> Btf {
        Btf { data: Cow::Borrowed(&[0]), big_endian: false, strings: (0, 1), index: vec![0] }
    }

    /// As [`Btf::parse`], without a copy.
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn from_vec(bytes: Vec<u8>) -> Result<Btf, BtfError> {
        check::parse(bytes.into())
    }

    /// As [`Btf::parse`], without a copy, of bytes that may be lent for good.
    ///
    /// # Errors
    /// As [`Btf::parse`].
    pub fn from_cow(bytes: Cow<'static, [u8]>) -> Result<Btf, BtfError> {
        check::parse(bytes)
    }

    /// The bytes that were parsed.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// How many types there are. Void is not counted: ids run from 1 to `len()`.
    pub fn len(&self) -> usize {
        self.index.len().saturating_sub(1)
    }

    /// True if there is no type at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every type's id, in order, without void.
    pub fn ids(&self) -> impl Iterator<Item = TypeId> + use<> {
        // The count fits: the index holds fewer entries than a u32 byte offset can tell apart.
        (1..self.index.len() as u32).map(TypeId)
    }

    fn head(&self, id: TypeId) -> Option<Head> {
        if id.is_void() {
            return None;
        }
        let at = *self.index.get(id.0 as usize)? as usize;
        self.head_at(at)
    }

    #[inline]
    fn head_at(&self, at: usize) -> Option<Head> {
        let record = self.data.get(at..)?.first_chunk()?;
        Some(Head::of(record, at, self.big_endian))
    }

    fn head_of(&self, id: TypeId, wanted: fn(Kind) -> bool) -> Option<Head> {
        let head = self.head(id)?;
        let kind = Kind::from_number(head.kind_number())?;
        wanted(kind).then_some(head)
    }

    /// The `head.vlen()` entries of `size` bytes that follow a type's head.
    fn entries(&self, head: Option<Head>, size: usize) -> std::slice::ChunksExact<'_, u8> {
        let bytes = head
            .and_then(|h| self.data.get(h.tail..h.tail.checked_add(h.vlen().checked_mul(size)?)?))
            .unwrap_or_default();
        bytes.chunks_exact(size)
    }

    /// Word `index` of an entry. Entries are checked to be whole, so the fallback never shows.
    fn entry_word(&self, entry: &[u8], index: usize) -> u32 {
        word(entry, index * 4, self.big_endian).unwrap_or(0)
    }

    /// The bytes of a name, without its NUL.
    fn name_bytes(&self, offset: u32) -> &[u8] {
        let (start, len) = self.strings;
        let rest =
            self.data.get(start..start.saturating_add(len)).and_then(|s| s.get(offset as usize..)).unwrap_or(&[]);
        CStr::from_bytes_until_nul(rest).map_or(&[], CStr::to_bytes)
    }

    fn name_at(&self, offset: u32) -> &str {
        std::str::from_utf8(self.name_bytes(offset)).unwrap_or("")
    }

    /// The text at an offset of the string section, for data outside of the BTF that refers to it. `None` past the
    /// section's end, and for what is not UTF-8. Takes time in proportion to the text's length.
    pub fn string(&self, offset: u32) -> Option<&str> {
        if offset as usize >= self.strings.1 {
            return None;
        }
        std::str::from_utf8(self.name_bytes(offset)).ok()
    }

    /// The same, but no more of it than `most` bytes, and only as far as it is text: takes no longer than that.
    pub fn beginning(&self, offset: u32, most: usize) -> &str {
        let (start, len) = self.strings;
        let strings = self.data.get(start..start.saturating_add(len)).unwrap_or_default();
        let text = strings.get(offset as usize..).unwrap_or_default();
        let text = text.get(..most).unwrap_or(text).split(|byte| *byte == 0).next().unwrap_or_default();
        match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => text.get(..error.valid_up_to()).and_then(|text| std::str::from_utf8(text).ok()).unwrap_or(""),
        }
    }

    /// Bytes of the string section, its last NUL included.
    pub fn strings_len(&self) -> usize {
        self.strings.1
    }

    /// True if the data is big-endian, like the object or the host that it describes.
    pub fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// The type's kind; [`Kind::Void`] for void and for an id that this BTF does not have.
    pub fn kind(&self, id: TypeId) -> Kind {
        match self.head(id) {
            None => Kind::Void,
            Some(head) => Kind::from_number(head.kind_number()).unwrap_or(Kind::Unknown),
        }
    }

    /// The type's name; empty if it has none.
    pub fn name(&self, id: TypeId) -> &str {
        self.head(id).map_or("", |head| self.name_at(head.name))
    }

    /// What a pointer points to, a typedef or qualifier stands for, a function's prototype, a variable's type, a tag's
    /// target. [`TypeId::VOID`] for `void` and for kinds that refer to nothing; arrays and prototypes have their own
    /// questions.
    pub fn target(&self, id: TypeId) -> TypeId {
        let refers =
            |kind: Kind| kind.is_modifier() || matches!(kind, Kind::Ptr | Kind::Func | Kind::Var | Kind::DeclTag);
        self.head_of(id, refers).map_or(TypeId::VOID, |head| TypeId(head.arg))
    }

    /// The members of a struct or union, in order; nothing for other kinds.
    pub fn members(&self, id: TypeId) -> impl Iterator<Item = Member<'_>> {
        let head = self.head_of(id, Kind::is_composite);
        let packed = head.is_some_and(Head::flag);
        self.entries(head, 12).map(move |entry| {
            let ty = TypeId(self.entry_word(entry, 1));
            let offset = self.entry_word(entry, 2);
            let (bit_offset, bitfield_size) = if packed {
                (offset & 0x00ff_ffff, offset >> 24)
            } else {
                // Before the kind flag (Linux 4.21) a bitfield was a member of an odd integer type.
                match self.int(self.resolve(ty)) {
                    Some(int) if int.bits != int.size * 8 => (offset.saturating_add(int.bit_offset), int.bits),
                    _ => (offset, 0),
                }
            };
            Member { name: self.name_at(self.entry_word(entry, 0)), ty, bit_offset, bitfield_size }
        })
    }

    /// How many members a struct or union, or constants an enum has; 0 for other kinds.
    pub fn entry_count(&self, id: TypeId) -> u32 {
        self.head_of(id, |kind| kind.is_composite() || kind.is_enum()).map_or(0, |head| head.info & 0x00ff_ffff)
    }

    /// How many parameters a function prototype has; 0 for other kinds.
    pub fn proto_param_count(&self, id: TypeId) -> u32 {
        self.head_of(id, |kind| kind == Kind::FuncProto).map_or(0, |head| head.info & 0x00ff_ffff)
    }

    /// Member `index`, at once: where and how wide it itself says that it is. What an old compiler said about a bitfield
    /// in its integer type alone, [`Btf::members`] takes into account and this does not; nor does libbpf.
    pub fn member_as_written(&self, id: TypeId, index: u32) -> Option<Member<'_>> {
        let head = self.head_of(id, Kind::is_composite)?;
        let entry = self.entries(Some(head), 12).nth(index as usize)?;
        Some(self.as_written(head, three(entry.first_chunk()?, self.big_endian)))
    }

    fn as_written(&self, head: Head, [name, ty, offset]: [u32; 3]) -> Member<'_> {
        let (bit_offset, bitfield_size) = if head.flag() { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
        Member { name: self.name_at(name), ty: TypeId(ty), bit_offset, bitfield_size }
    }

    /// The type of member `index`, at once.
    pub fn member_type(&self, id: TypeId, index: u32) -> Option<TypeId> {
        let entry = self.entries(self.head_of(id, Kind::is_composite), 12).nth(index as usize)?;
        Some(TypeId(self.entry_word(entry, 1)))
    }

    /// The members that are called `name`, and those without a name, in which there may be one: their numbers, and they
    /// themselves as they are written. Does not read other members' names.
    pub fn members_called<'b>(&'b self, id: TypeId, name: &'b str) -> impl Iterator<Item = (u32, Member<'b>)> {
        let head = self.head_of(id, Kind::is_composite);
        let (start, len) = self.strings;
        let strings = self.data.get(start..start.saturating_add(len)).unwrap_or_default();
        let first = name.bytes().next().unwrap_or(0);
        (0..).zip(self.entries(head, 12)).filter_map(move |(index, entry)| {
            let words = three(entry.first_chunk()?, self.big_endian);
            // Most names differ in their first byte.
            let begins = strings.get(words[0] as usize).copied().unwrap_or(0);
            let wanted = begins == 0 || (begins == first && self.is_named(words[0], name));
            if wanted { Some((index, self.as_written(head?, words))) } else { None }
        })
    }

    /// Constant `index` of an enum, at once.
    pub fn enumerator(&self, id: TypeId, index: u32) -> Option<Enumerator<'_>> {
        self.enumerators_from(id, index as usize).next()
    }

    /// The parameters of a function prototype, in order; nothing for other kinds.
    pub fn proto_params(&self, id: TypeId) -> impl Iterator<Item = Param<'_>> {
        self.entries(self.head_of(id, |k| k == Kind::FuncProto), 8)
            .map(|entry| Param { name: self.name_at(self.entry_word(entry, 0)), ty: TypeId(self.entry_word(entry, 1)) })
    }

    /// The type of parameter `index`, at once.
    pub fn proto_param(&self, id: TypeId, index: u32) -> Option<TypeId> {
        let entry = self.entries(self.head_of(id, |k| k == Kind::FuncProto), 8).nth(index as usize)?;
        Some(TypeId(self.entry_word(entry, 1)))
    }

    /// What a function prototype returns; [`TypeId::VOID`] also for other kinds.
    pub fn proto_return(&self, id: TypeId) -> TypeId {
        self.head_of(id, |k| k == Kind::FuncProto).map_or(TypeId::VOID, |head| TypeId(head.arg))
    }

    /// The constants of an enum of either width, in order; nothing for other kinds.
    pub fn enumerators(&self, id: TypeId) -> impl Iterator<Item = Enumerator<'_>> {
        self.enumerators_from(id, 0)
    }

    fn enumerators_from(&self, id: TypeId, first: usize) -> impl Iterator<Item = Enumerator<'_>> {
        let head = self.head_of(id, Kind::is_enum);
        let wide = self.kind(id) == Kind::Enum64;
        let signed = head.is_some_and(Head::flag);
        let mut entries = self.entries(head, if wide { 12 } else { 8 });
        if first > 0 {
            entries.nth(first - 1);
        }
        entries.map(move |entry| {
            let low = self.entry_word(entry, 1);
            let value = if wide {
                let bits = (u64::from(self.entry_word(entry, 2)) << 32) | u64::from(low);
                if signed { i128::from(bits as i64) } else { i128::from(bits) }
            } else if signed {
                i128::from(low as i32)
            } else {
                i128::from(low)
            };
            Enumerator { name: self.name_at(self.entry_word(entry, 0)), value }
        })
    }

    /// True if an enum's values are signed. Before Linux 6.0 nothing said so, and all counted as unsigned.
    pub fn enum_is_signed(&self, id: TypeId) -> bool {
        self.head_of(id, Kind::is_enum).is_some_and(Head::flag)
    }

    /// What an array holds.
    pub fn array(&self, id: TypeId) -> Option<Array> {
        let head = self.head_of(id, |k| k == Kind::Array)?;
        let at = |n| word(&self.data, head.tail + n, self.big_endian);
        Some(Array { elem: TypeId(at(0)?), index: TypeId(at(4)?), nelems: at(8)? })
    }

    /// How an integer is encoded.
    pub fn int(&self, id: TypeId) -> Option<Int> {
        let head = self.head_of(id, |k| k == Kind::Int)?;
        let data = word(&self.data, head.tail, self.big_endian)?;
        Some(Int {
            size: head.arg,
            bits: data & 0xff,
            bit_offset: (data >> 16) & 0xff,
            signed: data & (1 << 24) != 0,
            is_char: data & (1 << 25) != 0,
            is_bool: data & (1 << 26) != 0,
        })
    }

    /// True for a forward declaration of a union, false for one of a struct and for other kinds.
    pub fn fwd_is_union(&self, id: TypeId) -> bool {
        self.head_of(id, |k| k == Kind::Fwd).is_some_and(Head::flag)
    }

    /// True for a variable that only its own object sees (`BTF_VAR_STATIC`).
    pub fn var_is_static(&self, id: TypeId) -> bool {
        let linkage = self.head_of(id, |k| k == Kind::Var).and_then(|h| word(&self.data, h.tail, self.big_endian));
        linkage == Some(0)
    }

    /// The variables of a section; nothing for other kinds.
    pub fn section_vars(&self, id: TypeId) -> impl Iterator<Item = SectionVar> + '_ {
        self.entries(self.head_of(id, |k| k == Kind::Datasec), 12).map(|entry| SectionVar {
            var: TypeId(self.entry_word(entry, 0)),
            offset: self.entry_word(entry, 1),
            size: self.entry_word(entry, 2),
        })
    }
}
