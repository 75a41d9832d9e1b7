//! Which types of the target may be the one that the object means: those of the same kind and essential name.

use std::collections::{HashMap, HashSet};

use super::essential_name;
use crate::object::btf::{Btf, Kind, TypeId};

/// How names that are looked for begin: tells most names of a kernel apart before they are measured and hashed.
struct Beginnings(Vec<bool>);

impl Default for Beginnings {
    fn default() -> Self {
        Beginnings(vec![false; 1 << 16])
    }
}

impl Beginnings {
    /// The first two bytes; 0 for names of one byte.
    fn of(name: &str) -> usize {
        match name.as_bytes() {
            [first, second, ..] => usize::from(*first) << 8 | usize::from(*second),
            _ => 0,
        }
    }

    fn insert(&mut self, name: &str) {
        // A flavour follows a name of one byte at once, so any second byte may.
        let names = if name.len() < 2 { 0..1 << 16 } else { Self::of(name)..Self::of(name) + 1 };
        if let Some(slots) = self.0.get_mut(names) {
            slots.fill(true);
        }
    }

    fn contains(&self, name: &str) -> bool {
        !name.is_empty() && self.0.get(Self::of(name)).is_some_and(|found| *found)
    }
}

/// True for functions and what tags them. Nobody accesses those.
fn is_code(kind: Kind) -> bool {
    matches!(kind, Kind::Func | Kind::FuncProto | Kind::DeclTag | Kind::Var)
}

/// The target's types by essential name, for those names only that somebody asks about: one look at every type.
#[derive(Debug)]
pub(super) struct Candidates<'b> {
    by_name: HashMap<&'b str, Vec<TypeId>>,
}

/// True if types of these kinds may be meant by the same name.
pub(super) fn same_kind(one: Kind, two: Kind) -> bool {
    one == two || (one.is_enum() && two.is_enum())
}

impl<'b> Candidates<'b> {
    /// Finds the candidates for every type in `roots`.
    pub(super) fn new(local: &'b Btf, target: &Btf, roots: impl Iterator<Item = TypeId>) -> Self {
        let mut by_name: HashMap<&str, Vec<TypeId>> = HashMap::new();
        let mut beginnings = Beginnings::default();
        let mut functions = false;
        let mut seen = HashSet::new();
        for root in roots.filter(|root| seen.insert(*root)) {
            let name = essential_name(local.name(root));
            if !name.is_empty() {
                beginnings.insert(name);
                by_name.entry(name).or_default();
                functions |= is_code(local.kind(root));
            }
        }
        if !by_name.is_empty() {
            for id in target.ids() {
                // Half of a kernel's types.
                if !functions && is_code(target.kind(id)) {
                    continue;
                }
                let name = target.name(id);
                if !beginnings.contains(name) {
                    continue;
                }
                if let Some(found) = by_name.get_mut(essential_name(name)) {
                    found.push(id);
                }
            }
        }
        Candidates { by_name }
    }

    /// The target's types, of any kind, that are called like the object's type `root`, in the order of their ids.
    pub(super) fn called(&self, local: &Btf, root: TypeId) -> &[TypeId] {
        self.by_name.get(essential_name(local.name(root))).map_or(&[], Vec::as_slice)
    }
}
