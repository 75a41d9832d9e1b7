//! BTF: the types of a kernel or of a BPF object, as data.
//!
//! The bytes stay as they are, and an index of one `u32` a type says where each type begins; a type is decoded when it
//! is asked for. [`Btf::parse`] checks everything that could go wrong later, so that the questions themselves cannot
//! fail: a name is always text, a type id always a type. A well-formed file can still have, for example, a typedef of
//! itself. Each question has a limit for such cases.
//!
//! The format is that of the kernel's `include/uapi/linux/btf.h`, with the wider `vlen` and `kind` fields and the layout
//! section that newer kernels define. Either byte order is read. Split BTF (of kernel modules) is not.

mod check;
mod cycle;
mod kinds;
mod names;
mod query;
mod read;
#[cfg(any(test, feature = "samples"))]
#[allow(missing_docs)]
pub mod samples;
mod subset;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::ffi::CStr;
use std::fmt;

pub use kinds::{Array, Enumerator, Int, Kind, Member, Param, SectionVar};
pub(crate) use names::{Beginnings, is_code};
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

/// Why bytes are not valid BTF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BtfError {
    /// Byte offset of the flaw in the BTF data.
    pub offset: usize,
    /// The type it is in, when it is in one.
    pub type_id: Option<TypeId>,
    /// The defect.
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
    /// The offset in the data of the first byte after the head.
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
}
