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
use super::{RelocationKind, Types, Work};
use crate::object::btf::{Btf, Kind, TypeId};
use crate::object::btf_ext::CoreRelocation;

/// Answers that are kept, so that the same access in many places is looked up once: so many accesses, those of all
/// candidates counted.
const MOST_KEPT: usize = 8192;

/// What a relocation comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// What was asked.
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
    /// How many of the target's types have it.
    pub matches: usize,
    /// Why no type has it, and what is similar.
    pub missing: Option<Rc<str>>,
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
/// Relocations must come in the order of the file: once a type was found to have a field, later relocations for the same
/// type only look where that one was found. That is libbpf's rule, and decides between types of the same name.
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
    work: Work,
}

type Answer = Result<Rc<Resolution>, String>;

impl<'b> Resolver<'b> {
    /// For the types of an object of `bytes` bytes and a target's; `roots` are the types that there will be relocations of.
    pub fn new(local: &'b Btf, target: &'b Btf, roots: impl Iterator<Item = TypeId>, bytes: usize) -> Self {
        Resolver {
            candidates: Candidates::new(local, target, roots),
            local: Types::local(local),
            target: Types::target(target),
            left: HashMap::new(),
            kept: HashMap::new(),
            kept_accesses: 0,
            hints: Hints::default(),
            work: Work::new(bytes),
        }
    }

    /// What a relocation comes to.
    ///
    /// # Errors
    /// Why libbpf would not load the object: the relocation is malformed, or several types have what it asks for and
    /// differ. Or more was asked and compared than is spent on an object of its size ([`Resolver::is_spent`]).
    pub fn resolve(&mut self, relocation: &CoreRelocation<'b>) -> Answer {
        let key = (relocation.root, relocation.access, relocation.kind);
        let left = self.left.get(&relocation.root).map_or(0, Vec::len);
        if let Some((_, answer)) = self.kept.get(&key).filter(|(then, _)| *then == left) {
            return answer.clone();
        }
        let answer = self.compute(relocation).map(Rc::new);
        self.kept_accesses += answer.as_ref().map_or(1, |answer| 2 + answer.others.len());
        if self.kept_accesses < MOST_KEPT {
            let left = self.left.get(&relocation.root).map_or(0, Vec::len);
            self.kept.insert(key, (left, answer.clone()));
        }
        answer
    }

    /// Pays for what is told of a relocation with names of so many bytes, whether the question is new or not.
    ///
    /// # Errors
    /// More was asked and compared than is spent on an object of its size.
    pub fn pay(&self, names: usize) -> Result<(), String> {
        self.work.spend(Work::KNOWN.saturating_add(names as u32 / 4))
    }

    /// The same of one that is told without being resolved.
    ///
    /// # Errors
    /// As [`Resolver::pay`].
    pub fn pay_as_new(&self, names: usize) -> Result<(), String> {
        self.work.spend(Work::QUESTION).and_then(|()| self.pay(names))
    }

    /// The access as the object's types have it, without a target: the kind, the path, and the value that the compiler
    /// saw.
    ///
    /// # Errors
    /// The relocation is malformed.
    pub fn describe(local: &Btf, relocation: &CoreRelocation<'_>) -> Result<(RelocationKind, Spec, u64), String> {
        let kind = kind_of(relocation)?;
        let types = Types::local(local);
        let spec = spec::parse(types, relocation, kind, &Work::new(0))?;
        let value = value::of(types, kind, &spec)?.value;
        Ok((kind, spec, value))
    }

    fn compute(&mut self, relocation: &CoreRelocation<'b>) -> Result<Resolution, String> {
        self.work.spend(Work::QUESTION)?;
        let kind = kind_of(relocation)?;
        let root = relocation.root;
        let local = spec::parse(self.local, relocation, kind, &self.work)?;
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
                certain: false,
                resized: None,
            });
        }
        if self.local.btf.name(root).is_empty() {
            return Err(format!("{} has no name to look for in the target", self.local.name(root)));
        }
        let pair = Pair { local: self.local, target: self.target, work: &self.work };
        let called = self.candidates.called(self.local.btf, root);
        let left = match self.left.entry(root) {
            Entry::Occupied(left) => left.into_mut(),
            Entry::Vacant(none) => {
                // Many types may have one name, on both sides.
                self.work.spend(Work::COMPARISON.saturating_mul(called.len() as u32))?;
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
            self.work.spend(Work::CANDIDATE)?;
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
                    agree(pair.target, (first, other), (&found, &value))?;
                    others.push(found);
                }
            }
            matching.push(candidate);
        }
        let ours = ours()?;
        if !matching.is_empty() {
            *left = matching;
        }
        let matches = if best.is_some() { left.len() } else { 0 };
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
            certain: ours.certain,
            resized,
        })
    }

    /// Whether a question was refused since more was asked and compared than is spent on an object of its size. All are
    /// from then on.
    pub fn is_spent(&self) -> bool {
        self.work.is_spent.get()
    }

    /// The target's types.
    pub fn target(&self) -> &'b Btf {
        self.target.btf
    }
}

fn kind_of(relocation: &CoreRelocation<'_>) -> Result<RelocationKind, String> {
    RelocationKind::from_number(relocation.kind).ok_or_else(|| format!("kind {} is unknown", relocation.kind))
}

/// Two candidates must say the same.
fn agree(target: Types<'_>, first: (&Spec, &Value), second: (&Spec, &Value)) -> Result<(), String> {
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
