//! A relocation as it is shown.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::ops::Deref;
use std::rc::Rc;

use anyhow::Result;
use serde::{Serialize, Serializer};

use super::gathered::Gathered;
use crate::object::btf_ext::{CoreRelocation, LineInfo};
use crate::object::facts::hex;
use crate::object::insn::Insn;
use crate::object::relo::extent::{Extent, Extents};
use crate::object::relo::patch::Place;
use crate::object::relo::{Outcome, Relocated, RelocationKind, Resolution, Resolver, Spec, type_name};
use crate::object::{Btf, BtfExt, Kind, TypeId};

/// Bytes of a source file's name that are shown.
const MOST_PATH: usize = 256;

/// Accesses, and instructions, that are kept as they are shown: most programs read the same members over and over.
const KEPT: usize = 1024;

/// A relocation.
#[derive(Debug, Serialize)]
pub(super) struct Record<'v, 'r> {
    #[serde(skip)]
    pub(super) program: Option<&'r str>,
    #[serde(skip)]
    pub(super) section: &'r str,
    /// Instruction, counted from the beginning of the program.
    pub(super) insn: usize,
    pub(super) source: Option<Line<'r>>,
    /// What the instruction gets; null if it is poisoned or refused.
    pub(super) value: Option<i128>,
    /// `applied`, `poisoned`, `refused`, `skipped`, `unresolved`.
    pub(super) outcome: &'static str,
    /// Why it did not resolve, or why an existence check is false.
    pub(super) why: Option<&'r str>,
    #[serde(skip)]
    pub(super) about: Rc<Subject<'v>>,
    #[serde(skip)]
    pub(super) before: Rc<Kept<Code, String>>,
    #[serde(skip)]
    pub(super) after: Rc<Kept<Code, String>>,
}

/// Where an instruction came from.
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

/// What a relocation is about, whichever instruction it is for.
#[derive(Debug)]
pub(super) struct About<'r> {
    asked: Asked,
    local: &'r Types<'r>,
    target: Option<&'r Types<'r>>,
}

/// How far it was understood.
#[derive(Debug)]
enum Asked {
    /// It was resolved, or no type has it.
    Resolved(Rc<Resolution>),
    /// It is refused, or has no target: what it is in the object's types.
    Alone(RelocationKind, Spec, u64),
    /// It is malformed, and of a kind of that number.
    Malformed(u32),
}

/// Types, and how large things are there.
#[derive(Debug)]
struct Types<'r> {
    btf: &'r Btf,
    extents: Extents<'r>,
}

/// What of memory an access is about, as far as its value does not say that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MemoryPlace {
    /// So many bits, the first of which is bit `at`.
    Bits {
        /// How many.
        bits: u32,
        /// From the beginning of the root type.
        at: u32,
    },
    /// So many bytes.
    Bytes {
        /// How many.
        bytes: u32,
        /// From the beginning of the root type; none if that is the value.
        at: Option<u32>,
    },
}

/// One side of a relocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'s> {
    btf: &'s Btf,
    spec: &'s Spec,
    kind: RelocationKind,
    extent: Extent,
    /// What the instruction holds.
    pub(super) value: Option<i128>,
}

/// What a text report says of a relocation's subject.
#[derive(Debug)]
pub(super) struct AboutText {
    /// The kind, the access as a C programmer writes it, and what it is here; then, in brackets, the access there if it
    /// differs, and what of memory that is.
    pub(super) text: String,
    /// Where in it the brackets begin.
    pub(super) there: usize,
    /// True if what it is here is in it: it is not malformed.
    pub(super) has_value: bool,
}

/// The same, as it was shown.
pub(super) type Subject<'r> = Kept<About<'r>, AboutText>;

/// Something that is shown again and again, and how, once that was asked for.
#[derive(Debug)]
pub(super) struct Kept<T, S> {
    value: T,
    json: OnceCell<String>,
    text: OnceCell<S>,
}

impl<T, S> Deref for Kept<T, S> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize, S> Kept<T, S> {
    fn new(value: T) -> Rc<Self> {
        Rc::new(Kept { value, json: OnceCell::new(), text: OnceCell::new() })
    }

    /// As JSON, which is made in `scratch`.
    pub(super) fn json(&self, scratch: &mut Gathered<'_>) -> Result<&str> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        serde_json::to_writer(&mut *scratch, &self.value)?;
        let json = scratch.take();
        Ok(self.json.get_or_init(|| json))
    }

    /// As `make` makes it.
    pub(super) fn text(&self, make: impl FnOnce(&T) -> S) -> &S {
        self.text.get_or_init(|| make(&self.value))
    }
}

/// What was shown of something lately.
#[derive(Debug)]
struct Cache<K, T>(RefCell<Vec<Option<(K, T)>>>);

impl<K: PartialEq, T: Clone> Cache<K, T> {
    fn new() -> Self {
        Cache(RefCell::new((0..KEPT).map(|_| None).collect()))
    }

    /// `hash` is of the key.
    fn get(&self, key: K, hash: u64, make: impl FnOnce() -> T) -> T {
        let mut slots = self.0.borrow_mut();
        // The upper bits depend on all of the lower ones.
        let place = (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % KEPT;
        match slots.get(place) {
            Some(Some((known, made))) if *known == key => made.clone(),
            _ => {
                let made = make();
                if let Some(slot) = slots.get_mut(place) {
                    *slot = Some((key, made.clone()));
                }
                made
            }
        }
    }
}

/// Values are 64 bits that mean what the program makes of them. All but constants of enums are small; those of 32 bits
/// libbpf takes as signed, and those of 64 are what their enum says.
fn number(btf: &Btf, spec: &Spec, kind: RelocationKind, value: u64) -> i128 {
    let ty = btf.resolve(spec.root);
    match kind == RelocationKind::EnumvalValue && btf.kind(ty) == Kind::Enum64 && !btf.enum_is_signed(ty) {
        true => value.into(),
        false => (value as i64).into(),
    }
}

impl<'r> Types<'r> {
    fn side<'s>(&self, spec: &'s Spec, kind: RelocationKind, value: Option<u64>) -> Side<'s>
    where
        'r: 's,
    {
        let value = value.map(|value| number(self.btf, spec, kind, value));
        Side { btf: self.btf, spec, kind, extent: self.extents.of(kind, spec), value }
    }
}

impl Side<'_> {
    /// The access as a C programmer writes it.
    pub(super) fn access(&self) -> String {
        self.spec.text(self.btf, self.kind)
    }

    /// The root type.
    pub(super) fn ty(&self) -> String {
        type_name(self.btf, self.spec.root)
    }

    /// Bits from the beginning of the root type; none if it is no field.
    fn bit_offset(&self) -> Option<u32> {
        self.kind.is_field().then_some(self.spec.bit_offset)
    }

    /// Where it is and how large, as far as the value does not say that.
    pub(super) fn place(&self) -> Option<MemoryPlace> {
        match (self.bit_offset(), self.extent.bits, self.extent.size) {
            (Some(at), Some(bits), _) => Some(MemoryPlace::Bits { bits, at }),
            (Some(at), None, Some(bytes)) if self.kind != RelocationKind::FieldByteOffset => {
                Some(MemoryPlace::Bytes { bytes, at: Some(at / 8) })
            }
            (_, _, bytes) => Some(MemoryPlace::Bytes { bytes: bytes?, at: None }),
        }
    }
}

impl Serialize for Side<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Side {
            /// Type id of the root type.
            type_id: u32,
            #[serde(rename = "type")]
            ty: String,
            /// Access string, with the target's own member numbers.
            spec: String,
            access: String,
            bit_offset: Option<u32>,
            /// Bytes: of the field (of a bitfield, the type that it is declared with), the type, the constant's enum.
            size: Option<u32>,
            /// Bits of a bitfield; null if it is not one.
            bitfield_size: Option<u32>,
            value: Option<i128>,
        }
        let side = Side {
            type_id: self.spec.root.0,
            ty: self.ty(),
            spec: self.spec.raw_text(),
            access: self.access(),
            bit_offset: self.bit_offset(),
            size: self.extent.size,
            bitfield_size: self.extent.bits,
            value: self.value,
        };
        side.serialize(serializer)
    }
}

impl About<'_> {
    /// libbpf's name for the kind of relocation.
    pub(super) fn kind(&self) -> Cow<'static, str> {
        match &self.asked {
            Asked::Resolved(resolution) => resolution.kind.label().into(),
            Asked::Alone(kind, ..) => kind.label().into(),
            Asked::Malformed(kind) => format!("kind {kind}").into(),
        }
    }

    /// True if it is about a constant of an enum.
    pub(super) fn is_enumval(&self) -> bool {
        match &self.asked {
            Asked::Resolved(resolution) => resolution.kind.is_enumval(),
            Asked::Alone(kind, ..) => kind.is_enumval(),
            Asked::Malformed(_) => false,
        }
    }

    /// The object's side; none if it is malformed.
    pub(super) fn local(&self) -> Option<Side<'_>> {
        match &self.asked {
            Asked::Resolved(one) => Some(self.local.side(&one.local, one.kind, Some(one.local_value))),
            Asked::Alone(kind, spec, value) => Some(self.local.side(spec, *kind, Some(*value))),
            Asked::Malformed(_) => None,
        }
    }

    /// The target's side; none if it has nothing of the kind.
    pub(super) fn target(&self) -> Option<Side<'_>> {
        let Asked::Resolved(one) = &self.asked else { return None };
        Some(self.target?.side(one.target.as_ref()?, one.kind, one.value))
    }

    /// The access as a C programmer writes it; empty if it is malformed.
    pub(super) fn access(&self) -> String {
        self.local().map_or_else(String::new, |local| local.access())
    }

    /// How many of the target's types have it.
    fn matches(&self) -> usize {
        match &self.asked {
            Asked::Resolved(resolution) => resolution.matches,
            _ => 0,
        }
    }
}

impl Serialize for About<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct About<'s> {
            kind: Cow<'static, str>,
            local: Option<Side<'s>>,
            target: Option<Side<'s>>,
            matches: usize,
        }
        let about = About { kind: self.kind(), local: self.local(), target: self.target(), matches: self.matches() };
        about.serialize(serializer)
    }
}

/// What it takes to show a relocation.
pub(super) struct View<'r> {
    local: Types<'r>,
    target: Option<Types<'r>>,
    /// Source lines, by section.
    lines: HashMap<&'r str, &'r [LineInfo]>,
    big_endian: bool,
}

/// What was shown lately.
pub(super) struct Lately<'r> {
    /// By the resolution, which is kept along so that nothing else comes to lie where it is.
    abouts: Cache<*const Resolution, Rc<Subject<'r>>>,
    /// Of those that have none, by type, kind and where the access string is.
    alone: Cache<(TypeId, u32, *const u8), Rc<Subject<'r>>>,
    codes: Cache<Place, Rc<Kept<Code, String>>>,
}

impl Lately<'_> {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Lately { abouts: Cache::new(), alone: Cache::new(), codes: Cache::new() }
    }
}

impl<'r> View<'r> {
    /// For an object's types and a target's.
    pub(super) fn new(btf: &'r Btf, target: Option<&'r Btf>, ext: &'r BtfExt<'r>, big_endian: bool) -> Self {
        // Of two stretches for a section the first counts.
        let lines = ext.lines.iter().rev().map(|stretch| (stretch.section, stretch.records.as_slice())).collect();
        let local = Types { btf, extents: Extents::local(btf) };
        let target = target.map(|btf| Types { btf, extents: Extents::target(btf) });
        View { local, target, lines, big_endian }
    }

    /// The relocation as it is shown.
    pub(super) fn record<'v, 's>(&'v self, lately: &Lately<'v>, relocated: &'s Relocated<'s, '_>) -> Record<'v, 's>
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
        let resolution = relocated.resolution.as_deref();
        let missing = resolution.and_then(|resolution| resolution.missing.as_deref());
        let done = resolution.filter(|_| matches!(relocated.outcome, Outcome::Applied));
        let value = done.and_then(|resolution| {
            let (btf, spec) = match (&resolution.target, &self.target) {
                (Some(spec), Some(target)) => (target.btf, spec),
                _ => (self.local.btf, &resolution.local),
            };
            Some(number(btf, spec, resolution.kind, resolution.value?))
        });
        Record {
            program: relocated.program.map(|program| program.name),
            section: relocated.section,
            insn: relocated.index,
            source: self.line(relocated.section, relocation.offset),
            value,
            outcome,
            why: why.or(missing),
            about: self.about(lately, relocated),
            before: self.code(lately, &relocated.before),
            after: self.code(lately, &relocated.after),
        }
    }

    fn about<'s>(&'s self, lately: &Lately<'s>, relocated: &Relocated<'_, '_>) -> Rc<Subject<'s>> {
        let about = |asked| Kept::new(About { asked, local: &self.local, target: self.target.as_ref() });
        match &relocated.resolution {
            Some(resolution) => {
                let place = Rc::as_ptr(resolution);
                let make = || about(Asked::Resolved(resolution.clone()));
                lately.abouts.get(place, place.addr() as u64 >> 4, make)
            }
            None => {
                let CoreRelocation { root, kind, access, .. } = relocated.relocation;
                let place = access.as_ptr();
                let hash = (place.addr() as u64) << 32 | u64::from(root.0 ^ kind << 28);
                lately.alone.get((root, kind, place), hash, || about(self.unresolved(&relocated.relocation)))
            }
        }
    }

    /// Of a relocation that is malformed or ambiguous, or has no target.
    fn unresolved(&self, relocation: &CoreRelocation<'_>) -> Asked {
        match Resolver::describe(self.local.btf, relocation) {
            Ok((kind, spec, value)) => Asked::Alone(kind, spec, value),
            Err(_) => Asked::Malformed(relocation.kind),
        }
    }

    fn code(&self, lately: &Lately<'_>, place: &Place) -> Rc<Kept<Code, String>> {
        let make = || Code { bytes: hex(&place.bytes(self.big_endian)), text: place.text() };
        let hash = |insn: Insn| u64::from_le_bytes(insn.encode(false));
        let hash = hash(place.insn) ^ place.second.map_or(0, hash).rotate_left(7);
        lately.codes.get(*place, hash, || Kept::new(make()))
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

    #[test]
    fn constants_of_64_bits_are_what_their_enum_says() {
        use crate::object::btf::tests::Builder;

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
