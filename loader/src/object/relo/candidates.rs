//! Which types of the target may be the one that the object means: those of the same kind and essential name.

use std::collections::HashMap;

use super::essential_name;
use crate::object::btf::{Btf, Kind, TypeId};

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
        for root in roots {
            let name = essential_name(local.name(root));
            if !name.is_empty() {
                by_name.entry(name).or_default();
            }
        }
        if !by_name.is_empty() {
            for id in target.ids() {
                let name = target.name(id);
                if name.is_empty() {
                    continue;
                }
                if let Some(found) = by_name.get_mut(essential_name(name)) {
                    found.push(id);
                }
            }
        }
        Candidates { by_name }
    }

    /// The target's types, of any kind, that are called like the object's type `root`.
    pub(super) fn called(&self, local: &Btf, root: TypeId) -> &[TypeId] {
        self.by_name.get(essential_name(local.name(root))).map_or(&[], Vec::as_slice)
    }

    /// The target's types that may be the object's type `root`, in the order of their ids.
    pub(super) fn of(&self, local: &Btf, root: TypeId, target: &Btf) -> Vec<TypeId> {
        let kind = local.kind(root);
        self.called(local, root).iter().copied().filter(|id| same_kind(target.kind(*id), kind)).collect()
    }
}
