//! One relocation: all candidates, and what they agree on.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

use super::candidates::{Candidates, same_kind};
use super::compat::Pair;
use super::matching::Miss;
use super::spec::{self, Spec};
use super::value::{self, Value};
use super::why::Hints;
use super::{RelocationKind, Types};
use crate::btf::{Btf, Kind, TypeId};
use crate::btf_ext::CoreRelocation;
use crate::steps::Steps;

/// The most answers that are cached. Each access on each candidate counts as one.
const MOST_KEPT: usize = 8192;

/// The result of one relocation: the access and its value, in the object's types and in the target's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// The question.
    pub kind: RelocationKind,
    /// The access in the object's types.
    pub local: Spec,
    /// The answer for the object's types: what the instruction should hold before.
    pub local_value: u64,
    /// The access in the target's types; of several candidates that agree, in the first. `None` if there is none.
    pub target: Option<Spec>,
    /// The same access in the other candidates.
    pub others: Vec<Spec>,
    /// The answer for the target's types. `None` if there is none, and the instruction cannot run there.
    pub value: Option<u64>,
    /// The number of the target's types that have the access.
    pub matches: usize,
    /// The reason why no type has the access, and similar names.
    pub missing: Option<Rc<str>>,
    /// True if the target has no type of that name and kind at all: another BTF of the same kernel, a module's, may have one.
    pub absent: bool,
    /// False where the compiler may have put something else into the instruction than `local_value`.
    pub certain: bool,
    /// Bytes of a load of the field, in the object's types and in the target's, where they differ.
    pub resized: Option<Resized>,
}

/// A field that has another size in the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Bytes in the object's types.
    pub local: u32,
    /// Bytes in the target's.
    pub target: u32,
    /// True if a load of the other size gives the same value: both are pointers, or unsigned integers.
    pub harmless: bool,
}

/// Resolves relocations of one object against one target.
///
/// Relocations must come in the order of the file. Once a field was found, later relocations of the same type search
/// only the target types that have that field. That is libbpf's rule, and decides between types of the same name.
/// Relocations of programs that are not loaded do not narrow the choice.
#[derive(Debug)]
pub struct Resolver<'b> {
    local: Types<'b>,
    target: Types<'b>,
    candidates: Candidates<'b>,
    /// The object's types that were asked about, and which of the target's are left for each.
    left: HashMap<TypeId, Vec<TypeId>>,
    /// Answers by type, access and kind, and the number of candidates that were left then.
    kept: HashMap<(TypeId, &'b str, u32), (usize, Answer)>,
    /// How many accesses are in them.
    kept_accesses: usize,
    hints: Hints<'b>,
    steps: Rc<Steps>,
}

type Answer = Result<Rc<Resolution>, String>;

impl<'b> Resolver<'b> {
    /// For an object's types and a target's; `roots` are the types that there will be relocations of.
    pub fn new(local: &'b Btf, target: &'b Btf, roots: impl Iterator<Item = TypeId>, steps: Rc<Steps>) -> Self {
        Resolver {
            candidates: Candidates::new(local, target, roots),
            local: Types::local(local),
            target: Types::target(target),
            left: HashMap::new(),
            kept: HashMap::new(),
            kept_accesses: 0,
            hints: Hints::default(),
            steps,
        }
    }

    /// The result of a relocation. With `narrows`, later relocations of the same type search only the target's types in which
    /// this access was found.
    ///
    /// # Errors
    /// Why libbpf would not load the object: the relocation is malformed, or several types have what it asks for and
    /// differ. Or no steps are left ([`crate::steps::TOO_COMPLEX`]).
    pub fn resolve(&mut self, relocation: &CoreRelocation<'b>, narrows: bool) -> Answer {
        let key = (relocation.root, relocation.access, relocation.kind);
        let left = self.left.get(&relocation.root).map_or(0, Vec::len);
        if let Some((_, answer)) = self.kept.get(&key).filter(|(then, _)| *then == left) {
            return answer.clone();
        }
        let answer = self.compute(relocation, narrows).map(Rc::new);
        // An answer without narrowing is not kept: a later relocation would take it, and skip the narrowing.
        if !narrows {
            return answer;
        }
        self.kept_accesses += answer.as_ref().map_or(1, |answer| 2 + answer.others.len());
        if self.kept_accesses < MOST_KEPT {
            let left = self.left.get(&relocation.root).map_or(0, Vec::len);
            self.kept.insert(key, (left, answer.clone()));
        }
        answer
    }

    /// The access as the object's types have it, without a target: the kind, the path, and the value that the compiler
    /// saw.
    ///
    /// # Errors
    /// The relocation is malformed.
    pub fn describe(local: &Btf, relocation: &CoreRelocation<'_>) -> Result<(RelocationKind, Spec, u64), String> {
        let kind = kind_of(relocation)?;
        let types = Types::local(local);
        let spec = spec::parse(types, relocation, kind, &Steps::default())?;
        let value = value::of(types, kind, &spec)?.value;
        Ok((kind, spec, value))
    }

    fn compute(&mut self, relocation: &CoreRelocation<'b>, narrows: bool) -> Result<Resolution, String> {
        let kind = kind_of(relocation)?;
        let root = relocation.root;
        let local = spec::parse(self.local, relocation, kind, &self.steps)?;
        if kind == RelocationKind::TypeIdLocal {
            let id = u64::from(root.0);
            return Ok(Resolution {
                kind,
                target: None,
                others: Vec::new(),
                local,
                local_value: id,
                value: Some(id),
                matches: 0,
                missing: None,
                absent: false,
                certain: false,
                resized: None,
            });
        }
        if self.local.btf.name(root).is_empty() {
            return Err(format!("{} has no name to look for in the target", self.local.name(root)));
        }
        let pair = Pair { local: self.local, target: self.target, steps: &self.steps };
        let called = self.candidates.called(self.local.btf, root);
        let left = match self.left.entry(root) {
            Entry::Occupied(left) => left.into_mut(),
            Entry::Vacant(none) => {
                // Many types may have one name, on both sides.
                self.steps.take(called.len())?;
                let kind = pair.local.btf.kind(root);
                let of_kind = called.iter().copied().filter(|id| same_kind(pair.target.btf.kind(*id), kind));
                none.insert(of_kind.collect())
            }
        };
        let mut matching: Vec<TypeId> = Vec::new();
        let mut best: Option<(Spec, Value)> = None;
        let mut others = Vec::new();
        let mut miss: Option<Miss> = None;
        // The object's own value; computed only where libbpf does, so that the same things are refused.
        let ours = || value::of(pair.local, kind, &local);
        for candidate in left.iter().copied() {
            self.steps.take(1)?;
            let found = match pair.find(&local, kind, candidate)? {
                Ok(found) => found,
                Err(why) => {
                    miss = miss.or(Some(why));
                    continue;
                }
            };
            ours()?;
            let value = value::of(pair.target, kind, &found)?;
            match &best {
                None => best = Some((found, value)),
                Some((first, other)) => {
                    check_same_answer(pair.target, (first, other), (&found, &value))?;
                    others.push(found);
                }
            }
            matching.push(candidate);
        }
        let ours = ours()?;
        let matches = matching.len();
        if narrows && !matching.is_empty() {
            *left = matching;
        }
        let missing = match &best {
            Some(_) => None,
            None => Some(self.hints.missing(&pair, self.target.btf, called, kind, &local, miss).into()),
        };
        let resized = best.as_ref().and_then(|(_, value)| resized(&pair, &ours, value));
        let absent = match kind {
            RelocationKind::FieldExists
            | RelocationKind::TypeIdTarget
            | RelocationKind::TypeExists
            | RelocationKind::TypeSize
            | RelocationKind::TypeMatches
            | RelocationKind::EnumvalExists => Some(0),
            _ => None,
        };
        let (target, value) = match best {
            Some((spec, value)) => (Some(spec), Some(value.value)),
            None => (None, absent),
        };
        Ok(Resolution {
            kind,
            local,
            local_value: ours.value,
            target,
            others,
            value,
            matches,
            missing,
            absent: left.is_empty(),
            certain: ours.certain,
            resized,
        })
    }

    /// The target's types.
    pub fn target(&self) -> &'b Btf {
        self.target.btf
    }
}

fn kind_of(relocation: &CoreRelocation<'_>) -> Result<RelocationKind, String> {
    RelocationKind::from_number(relocation.kind).ok_or_else(|| format!("kind {} is unknown", relocation.kind))
}

/// An error if two candidates give different answers.
fn check_same_answer(target: Types<'_>, first: (&Spec, &Value), second: (&Spec, &Value)) -> Result<(), String> {
    let what = match (first.0.bit_offset == second.0.bit_offset, first.1.value == second.1.value) {
        (true, true) => return Ok(()),
        (false, _) => format!("bit offset {} and {}", first.0.bit_offset, second.0.bit_offset),
        (true, false) => format!("{} and {}", first.1.value, second.1.value),
    };
    let name = |spec: &Spec| format!("{} {}", spec.root, target.name(spec.root));
    Err(format!("ambiguous: {} and {} differ ({what})", name(first.0), name(second.0)))
}

fn resized(pair: &Pair<'_>, ours: &Value, theirs: &Value) -> Option<Resized> {
    let size = |value: &Value| value.load.map_or(0, |(size, _)| size);
    if size(ours) == size(theirs) {
        return None;
    }
    let harmless = match (ours.load, theirs.load) {
        (Some((_, local)), Some((_, target))) => {
            let pointers = pair.local.btf.kind(local) == Kind::Ptr && pair.target.btf.kind(target) == Kind::Ptr;
            // libbpf's test is that the encoding is not just "signed": `_Bool` and characters pass.
            let unsigned = |btf: &Btf, id| btf.int(id).is_some_and(|i| !i.signed || i.is_char || i.is_bool);
            pointers || (unsigned(pair.local.btf, local) && unsigned(pair.target.btf, target))
        }
        _ => false,
    };
    Some(Resized { local: size(ours), target: size(theirs), harmless })
}
