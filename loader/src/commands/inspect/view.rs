//! A relocation as the report shows it: plain values, which the text and the JSON print.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::object::btf_ext::LineInfo;
use crate::object::facts::hex;
use crate::object::relo::extent::Extents;
use crate::object::relo::patch::Place;
use crate::object::relo::{Outcome, Relocated, RelocationKind, Resolver, Spec, type_name};
use crate::object::{Btf, BtfExt, Kind, TypeId};

/// The most bytes of a source file's name that are shown.
const MOST_PATH: usize = 256;

/// A relocation. The order of the fields is that of the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Shown<'r> {
    /// Null for a function in `.text`.
    pub(super) program: Option<&'r str>,
    /// The function's name with its section, if other functions have the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) label: Option<&'r str>,
    pub(super) section: &'r str,
    /// Instruction, counted from the beginning of the program.
    pub(super) insn: usize,
    pub(super) source: Option<Line<'r>>,
    /// The new value in the instruction; null if the instruction is poisoned or refused.
    pub(super) value: Option<i128>,
    /// `applied`, `poisoned`, `refused`, `skipped`, `unresolved`.
    pub(super) outcome: &'static str,
    /// The reason why the relocation did not resolve, or why an existence check is false.
    pub(super) why: Option<&'r str>,
    pub(super) before: Code,
    pub(super) after: Code,
    /// libbpf's name for the kind of relocation.
    pub(super) kind: Cow<'static, str>,
    /// The access in the object's types; null if the relocation is malformed.
    pub(super) local: Option<Side>,
    /// The access in the target's types; null if no type there has it.
    pub(super) target: Option<Side>,
    /// The number of the target's types that have the access.
    pub(super) matches: usize,
    /// True if the relocation is about a constant of an enum.
    #[serde(skip)]
    pub(super) is_enumval: bool,
}

/// The source line of an instruction.
#[derive(Debug, Serialize)]
pub(super) struct Line<'r> {
    pub(super) file: &'r str,
    pub(super) line: u32,
}

/// An instruction, as bytes and as text.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Code {
    pub(super) bytes: String,
    pub(super) text: String,
}

/// The part of memory that an access is about, as far as the value of the access does not give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryPlace {
    /// This number of bits, the first of which is bit `at` from the beginning of the root type.
    Bits { bits: u32, at: u32 },
    /// This number of bytes, `at` bytes from the beginning of the root type. `at` is none if the value gives it.
    Bytes { bytes: u32, at: Option<u32> },
}

/// One side of a relocation. The order of the fields is that of the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Side {
    /// Type id of the root type.
    type_id: u32,
    /// The root type, as a C programmer names it.
    #[serde(rename = "type")]
    pub(super) ty: String,
    /// Access string, with the member numbers of this side.
    spec: String,
    /// The access as a C programmer writes it.
    pub(super) access: String,
    /// Bits from the beginning of the root type; null if the access is to no field.
    bit_offset: Option<u32>,
    /// Bytes of the field (for a bitfield, of its declared type), of the type, or of the constant's enum.
    size: Option<u32>,
    /// Bits of a bitfield; null if the field is not one.
    bitfield_size: Option<u32>,
    /// The value in the instruction.
    pub(super) value: Option<i128>,
    #[serde(skip)]
    pub(super) place: Option<MemoryPlace>,
    /// ` of struct sock [12]`, if the object has several types of that name; else empty.
    #[serde(skip)]
    pub(super) which: String,
}

/// The value as a signed number. A value is 64 bits, and the program decides their meaning. Only constants of enums can be
/// large. libbpf takes 32-bit constants as signed; for a 64-bit constant the enum decides.
fn number(btf: &Btf, spec: &Spec, kind: RelocationKind, value: u64) -> i128 {
    let ty = btf.resolve(spec.root);
    match kind == RelocationKind::EnumvalValue && btf.kind(ty) == Kind::Enum64 && !btf.enum_is_signed(ty) {
        true => value.into(),
        false => (value as i64).into(),
    }
}

/// The types of one side, and their extents.
#[derive(Debug)]
struct Types<'r> {
    btf: &'r Btf,
    extents: Extents<'r>,
    /// Types of which there are several of one name.
    ambiguous: HashSet<TypeId>,
}

impl Types<'_> {
    fn side(&self, spec: &Spec, kind: RelocationKind, value: Option<u64>) -> Side {
        let extent = self.extents.of(kind, spec);
        let bit_offset = kind.is_field().then_some(spec.bit_offset);
        let place = match (bit_offset, extent.bits, extent.size) {
            (Some(at), Some(bits), _) => Some(MemoryPlace::Bits { bits, at }),
            (Some(at), None, Some(bytes)) if kind != RelocationKind::FieldByteOffset => {
                Some(MemoryPlace::Bytes { bytes, at: Some(at / 8) })
            }
            (_, _, bytes) => bytes.map(|bytes| MemoryPlace::Bytes { bytes, at: None }),
        };
        Side {
            type_id: spec.root.0,
            ty: type_name(self.btf, spec.root),
            spec: spec.raw_text(),
            access: spec.text(self.btf, kind),
            bit_offset,
            size: extent.size,
            bitfield_size: extent.bits,
            value: value.map(|value| number(self.btf, spec, kind, value)),
            place,
            which: self.which(spec),
        }
    }

    fn which(&self, spec: &Spec) -> String {
        if !self.ambiguous.contains(&spec.root) {
            return String::new();
        }
        format!(" of {} {}", type_name(self.btf, spec.root), spec.root)
    }
}

/// The types and source lines that are needed to show a relocation.
pub(super) struct View<'r> {
    local: Types<'r>,
    target: Option<Types<'r>>,
    /// Source lines, by section.
    lines: HashMap<&'r str, &'r [LineInfo]>,
    big_endian: bool,
}

impl<'r> View<'r> {
    /// A view of an object's types and a target's.
    pub(super) fn new(btf: &'r Btf, target: Option<&'r Btf>, ext: &'r BtfExt<'r>, big_endian: bool) -> Self {
        // If a section has two stretches, the first one counts.
        let lines = ext.lines.iter().rev().map(|stretch| (stretch.section, stretch.records.as_slice())).collect();
        let local = Types { btf, extents: Extents::local(btf), ambiguous: btf.ambiguous() };
        // Messages about several types of the target have the types' numbers.
        let target = target.map(|btf| Types { btf, extents: Extents::target(btf), ambiguous: HashSet::new() });
        View { local, target, lines, big_endian }
    }

    /// The relocation in the form that the report shows.
    pub(super) fn show<'s>(&self, relocated: &'s Relocated<'s, '_>) -> Shown<'s>
    where
        'r: 's,
    {
        let relocation = &relocated.relocation;
        let (outcome, why) = match &relocated.outcome {
            Outcome::Applied => ("applied", None),
            Outcome::Poisoned(why) => ("poisoned", Some(&**why)),
            Outcome::Refused(why) => ("refused", Some(why.as_str())),
            Outcome::Skipped => ("skipped", None),
            Outcome::Unresolved => ("unresolved", None),
        };
        let mut shown = Shown {
            program: relocated.program.map(|program| program.name),
            label: relocated.program.and_then(|program| Some(&*relocated.label).filter(|label| program.name != *label)),
            section: relocated.section,
            insn: relocated.index,
            source: self.line(relocated.section, relocation.offset),
            value: None,
            outcome,
            why,
            before: self.code(&relocated.before),
            after: self.code(&relocated.after),
            kind: format!("kind {}", relocation.kind).into(),
            local: None,
            target: None,
            matches: 0,
            is_enumval: false,
        };
        // There is no resolution if the relocation is refused or there is no target. Then the object's types tell the
        // question.
        let asked = match &relocated.resolution {
            Some(one) => Some((one.kind, self.local.side(&one.local, one.kind, Some(one.local_value)))),
            None => Resolver::describe(self.local.btf, relocation)
                .ok()
                .map(|(kind, spec, value)| (kind, self.local.side(&spec, kind, Some(value)))),
        };
        if let Some((kind, local)) = asked {
            (shown.kind, shown.is_enumval, shown.local) = (kind.label().into(), kind.is_enumval(), Some(local));
        }
        if let Some(one) = &relocated.resolution {
            let target = self.target.as_ref().zip(one.target.as_ref());
            shown.target = target.map(|(types, spec)| types.side(spec, one.kind, one.value));
            shown.matches = one.matches;
            shown.why = why.or(one.missing.as_deref());
            if matches!(relocated.outcome, Outcome::Applied) {
                let (btf, spec) = target.map_or((self.local.btf, &one.local), |(types, spec)| (types.btf, spec));
                shown.value = one.value.map(|value| number(btf, spec, one.kind, value));
            }
        }
        shown
    }

    /// A path as messages show it: `sock->sk_protocol`, and the type's number if the object has several types of that name.
    pub(super) fn access(&self, spec: &Spec, kind: RelocationKind) -> String {
        spec.text(self.local.btf, kind) + &self.local.which(spec)
    }

    fn code(&self, place: &Place) -> Code {
        Code { bytes: hex(&place.bytes(self.big_endian)), text: place.text() }
    }

    /// The source line that an instruction came from.
    fn line(&self, section: &str, offset: u32) -> Option<Line<'r>> {
        let lines = self.lines.get(section)?;
        let after = lines.partition_point(|line| line.offset <= offset);
        let found = lines.get(after.checked_sub(1)?)?;
        Some(Line { file: self.local.btf.beginning(found.file, MOST_PATH), line: found.line })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::object::btf_ext::CoreRelocation;

    #[test]
    fn constants_of_64_bits_are_what_their_enum_says() {
        use crate::object::btf::samples::Builder;

        let mut types = Builder::new(false);
        let enums = [(8, false), (8, true), (4, false)].map(|(size, signed)| {
            let name = format!("enum_{size}_{signed}");
            types.enumeration(&name, size, signed, &[("TOP", -1)])
        });
        let btf = Btf::from_vec(types.finish()).unwrap();
        let shown = enums.map(|root| {
            let access = CoreRelocation { offset: 0, root, access: "0", kind: RelocationKind::EnumvalValue as u32 };
            let (kind, spec, value) = Resolver::describe(&btf, &access).unwrap();
            number(&btf, &spec, kind, value)
        });
        assert_eq!(shown, [i128::from(u64::MAX), -1, -1]);
    }
}
