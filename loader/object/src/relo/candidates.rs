//! The types of the target that may be the one that the object means: types of the same kind and essential name.

use std::collections::HashMap;

use super::essential_name;
use crate::btf::{Beginnings, Btf, Kind, TypeId, is_code};

/// The target's types by essential name, for wanted names only. Building it takes one look at every type.
#[derive(Debug)]
pub(super) struct Candidates<'b> {
    by_name: HashMap<&'b str, Vec<TypeId>>,
}

/// True if one name can mean types of both kinds.
pub(crate) fn same_kind(one: Kind, two: Kind) -> bool {
    one == two || (one.is_enum() && two.is_enum())
}

/// The target's types with one of these essential names, in the order of their ids; functions too if `with_code` asks for
/// them.
pub(crate) fn by_essential_name<'n>(
    target: &Btf,
    names: impl IntoIterator<Item = &'n str>,
    with_code: bool,
) -> HashMap<&'n str, Vec<TypeId>> {
    let mut by_name: HashMap<&str, Vec<TypeId>> =
        names.into_iter().filter(|name| !name.is_empty()).map(|name| (name, Vec::new())).collect();
    if !by_name.is_empty() {
        let wanted = Beginnings::of(by_name.keys().copied());
        for (id, _, name) in target.beginning_like(&wanted, with_code) {
            if let Some(found) = by_name.get_mut(essential_name(name)) {
                found.push(id);
            }
        }
    }
    by_name
}

impl<'b> Candidates<'b> {
    /// Finds the candidates for every type in `roots`.
    pub(super) fn new(local: &'b Btf, target: &Btf, roots: impl Iterator<Item = TypeId>) -> Self {
        let mut functions = false;
        let mut names = Vec::new();
        for root in roots {
            names.push(essential_name(local.name(root)));
            functions |= is_code(local.kind(root));
        }
        Candidates { by_name: by_essential_name(target, names, functions) }
    }

    /// The target's types, of any kind, with the essential name of the object's type `root`, in the order of their ids.
    pub(super) fn called(&self, local: &Btf, root: TypeId) -> &[TypeId] {
        self.by_name.get(essential_name(local.name(root))).map_or(&[], Vec::as_slice)
    }
}
