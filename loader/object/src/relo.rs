//! CO-RE relocations: the new offset, size or constant of an instruction on the kernel that a BTF describes.
//!
//! This module is our own reading of the rules, to be compared with libbpf's (src/relo_core.c): the same candidates, the
//! same matching, the same values, the same refusals. Nothing here loads anything.
//!
//! - [`spec`]: the accessed path, in the object's types; `matching`: the same path in the target's types.
//! - `candidates`: the target types that may be meant; `compat`: the types that may stand for each other.
//! - `value`: offsets, sizes, shifts; [`extent`]: the part of memory that an access is about; [`patch`]: the instruction
//!   afterwards.
//! - [`apply`]: all of an object's relocations, one after the other; [`reach`]: whether an unresolved relocation matters.

pub mod apply;
mod candidates;
mod compat;
pub mod extent;
mod matching;
pub mod patch;
pub mod reach;
mod resolver;
pub mod spec;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod value;
mod why;

pub use apply::{Changed, Outcome, Relocated, Relocations, Take};
pub use resolver::{Resolution, Resolver};
pub use spec::Spec;

pub(crate) use candidates::{by_essential_name, same_kind};

use super::btf::{Btf, Kind, TypeId};
use crate::sort;

/// The question of a relocation. Numbers and meanings are those of `enum bpf_core_relo_kind` in the kernel's
/// include/uapi/linux/bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RelocationKind {
    /// Byte offset of a field; for a bitfield, of the load that holds the field.
    FieldByteOffset,
    /// Size of a field in bytes; for a bitfield, of the load that holds the field.
    FieldByteSize,
    /// 1 if the field exists, else 0.
    FieldExists,
    /// 1 if the field is signed, else 0.
    FieldSigned,
    /// Number of bits to shift a 64-bit load left, which drops the bits above the field.
    FieldLshiftU64,
    /// Number of bits to shift the load right after the left shift.
    FieldRshiftU64,
    /// The type's id in the object's own BTF.
    TypeIdLocal,
    /// The type's id in the target's BTF; 0 if it has none.
    TypeIdTarget,
    /// 1 if the type exists, else 0.
    TypeExists,
    /// The type's size in bytes; 0 if it does not exist.
    TypeSize,
    /// 1 if the enum has the constant, else 0.
    EnumvalExists,
    /// The constant's value.
    EnumvalValue,
    /// 1 if a type of the same shape exists, else 0.
    TypeMatches,
}

impl RelocationKind {
    /// Every kind, by number.
    pub const ALL: [RelocationKind; 13] = [
        RelocationKind::FieldByteOffset,
        RelocationKind::FieldByteSize,
        RelocationKind::FieldExists,
        RelocationKind::FieldSigned,
        RelocationKind::FieldLshiftU64,
        RelocationKind::FieldRshiftU64,
        RelocationKind::TypeIdLocal,
        RelocationKind::TypeIdTarget,
        RelocationKind::TypeExists,
        RelocationKind::TypeSize,
        RelocationKind::EnumvalExists,
        RelocationKind::EnumvalValue,
        RelocationKind::TypeMatches,
    ];

    /// The kind with this number.
    pub fn from_number(number: u32) -> Option<RelocationKind> {
        RelocationKind::ALL.get(number as usize).copied()
    }

    /// libbpf's name for the kind, as in libbpf's messages.
    pub fn label(self) -> &'static str {
        match self {
            RelocationKind::FieldByteOffset => "byte_off",
            RelocationKind::FieldByteSize => "byte_sz",
            RelocationKind::FieldExists => "field_exists",
            RelocationKind::FieldSigned => "signed",
            RelocationKind::FieldLshiftU64 => "lshift_u64",
            RelocationKind::FieldRshiftU64 => "rshift_u64",
            RelocationKind::TypeIdLocal => "local_type_id",
            RelocationKind::TypeIdTarget => "target_type_id",
            RelocationKind::TypeExists => "type_exists",
            RelocationKind::TypeSize => "type_size",
            RelocationKind::EnumvalExists => "enumval_exists",
            RelocationKind::EnumvalValue => "enumval_value",
            RelocationKind::TypeMatches => "type_matches",
        }
    }

    /// True if the kind asks about a field.
    pub fn is_field(self) -> bool {
        matches!(
            self,
            RelocationKind::FieldByteOffset
                | RelocationKind::FieldByteSize
                | RelocationKind::FieldExists
                | RelocationKind::FieldSigned
                | RelocationKind::FieldLshiftU64
                | RelocationKind::FieldRshiftU64
        )
    }

    /// True if the kind asks about a constant of an enum.
    pub fn is_enumval(self) -> bool {
        matches!(self, RelocationKind::EnumvalExists | RelocationKind::EnumvalValue)
    }

    /// True if the kind asks about a type as a whole.
    pub fn is_type(self) -> bool {
        !self.is_field() && !self.is_enumval()
    }
}

/// A name without its flavour: the part before the last `___` that stands between two characters other than `_`.
///
/// `sock___old` asks for the kernel's `sock`; `___x` and `a____b` have no flavour.
pub fn essential_name(name: &str) -> &str {
    let bytes = name.as_bytes();
    let is_separator = |w: &[u8]| matches!(w, [x, b'_', b'_', b'_', y] if *x != b'_' && *y != b'_');
    match bytes.windows(5).rposition(is_separator) {
        // The byte at index `at` ends a character, because the `_` after it begins one.
        Some(at) => name.get(..=at).unwrap_or(name),
        None => name,
    }
}

/// BTF as CO-RE sees it: with the size of pointers in the program or kernel that the BTF describes.
#[derive(Clone, Copy, Debug)]
struct Types<'b> {
    btf: &'b Btf,
    /// Size of a pointer, in bytes.
    pointer: u32,
}

/// The number of steps after which libbpf gives up on a type's size (`MAX_RESOLVE_DEPTH` in src/btf.c).
const MAX_SIZE_DEPTH: usize = 32;

impl<'b> Types<'b> {
    /// An object's types: BPF has 64-bit pointers.
    fn local(btf: &'b Btf) -> Self {
        Types { btf, pointer: 8 }
    }

    /// A kernel's types: the type `long` has the width of a pointer.
    fn target(btf: &'b Btf) -> Self {
        let is_long = |name: &str| {
            let mut words: Vec<&str> = name.split(' ').collect();
            sort::ascending(&mut words);
            matches!(words.as_slice(), ["long"] | ["int", "long"] | ["long", "unsigned"] | ["int", "long", "unsigned"])
        };
        let long = btf.ids().filter(|id| btf.kind(*id) == Kind::Int).find_map(|id| {
            let size = btf.int(id)?.size;
            (matches!(size, 4 | 8) && is_long(btf.name(id))).then_some(size)
        });
        Types { btf, pointer: long.unwrap_or(8) }
    }

    /// `sizeof`, in bytes; `None` for a type without a size, or with a size beyond 32 bits.
    fn size(&self, id: TypeId) -> Option<u32> {
        let mut id = id;
        let mut times: u32 = 1;
        for _ in 0..MAX_SIZE_DEPTH {
            match self.btf.kind(id) {
                Kind::Ptr => return times.checked_mul(self.pointer),
                Kind::Array => {
                    let array = self.btf.array(id)?;
                    times = times.checked_mul(array.nelems)?;
                    id = array.elem;
                }
                kind if kind.is_modifier() || kind == Kind::Var => id = self.btf.target(id),
                _ => return times.checked_mul(u32::try_from(self.btf.size_of(id)?).ok()?),
            }
        }
        None
    }

    /// A type as a C programmer names it: `struct sock`, `u32`, `struct {...}`.
    fn name(&self, id: TypeId) -> String {
        type_name(self.btf, id)
    }
}

/// The number of bytes after which messages cut a name.
const SHOWN: usize = 256;

/// `text`, cut to a length that a person reads.
pub(crate) fn cut(text: &str) -> String {
    shorten(text.get(..4 * SHOWN + 4).unwrap_or(text).to_owned())
}

/// As [`cut`], for text that the caller gives away.
fn shorten(mut text: String) -> String {
    // No character has more than four bytes.
    if text.len() > SHOWN
        && let Some((end, _)) = text.char_indices().nth(SHOWN)
    {
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// A type as a C programmer names it: `struct sock`, `u32`, `const struct sock *`, `char[16]`.
pub fn type_name(btf: &Btf, id: TypeId) -> String {
    let mut id = id;
    let mut after = String::new();
    let mut qualifiers = String::new();
    // Deeper types are possible, but do not help a reader.
    for _ in 0..8 {
        let name = btf.name(id);
        let named = |keyword: &str| {
            let name = if name.is_empty() { "{...}" } else { name };
            // Each piece costs a call of memcpy. Most types have no qualifiers, and nothing after the name.
            let mut all = String::with_capacity(qualifiers.len() + keyword.len() + name.len() + after.len());
            for piece in [&qualifiers, keyword, name, &after].into_iter().filter(|piece| !piece.is_empty()) {
                all.push_str(piece);
            }
            shorten(all)
        };
        match btf.kind(id) {
            Kind::Void => return format!("{qualifiers}void{after}"),
            Kind::Struct => return named("struct "),
            Kind::Union => return named("union "),
            Kind::Enum | Kind::Enum64 => return named("enum "),
            Kind::Fwd => return named(if btf.fwd_is_union(id) { "union " } else { "struct " }),
            Kind::Func | Kind::Var | Kind::Datasec | Kind::DeclTag | Kind::Unknown | Kind::Int | Kind::Float => {
                return named("");
            }
            Kind::Typedef => return named(""),
            Kind::FuncProto => return format!("{qualifiers}function{after}"),
            Kind::Const => qualifiers.push_str("const "),
            Kind::Volatile => qualifiers.push_str("volatile "),
            Kind::Restrict | Kind::TypeTag => {}
            Kind::Ptr => {
                after = format!("{}*{}{after}", if after.starts_with('*') { "" } else { " " }, qualifiers.trim_end());
                after = after.replace("* *", "**");
                qualifiers.clear();
            }
            Kind::Array => {
                let nelems = btf.array(id).map_or(0, |array| array.nelems);
                after = format!("{after}[{nelems}]");
                id = btf.array(id).map_or(TypeId::VOID, |array| array.elem);
                continue;
            }
        }
        id = btf.target(id);
    }
    format!("...{after}")
}
