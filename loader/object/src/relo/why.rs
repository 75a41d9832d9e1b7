//! The reason why nothing in the target matches, in words that a person can act on.

use std::collections::HashMap;

use super::compat::Pair;
use super::matching::Miss;
use super::spec::Spec;
use super::{RelocationKind, cut, essential_name};
use crate::btf::{Btf, Kind, TypeId};
use crate::nearest::{hint, nearest};

/// The most names that are compared to find similar ones: some milliseconds. Similar names decide nothing. So they take none of
/// the steps, and after this number none are looked for.
const MOST_COMPARED: usize = 1 << 16;

/// The names of a target's types, to find those that are similar to a missing one.
#[derive(Debug)]
pub(super) struct Hints<'b> {
    /// The names of the target's types of a kind, by their first byte.
    by_start: HashMap<Kind, Vec<Vec<&'b str>>>,
    /// Hints that were given for a type, by kind and name.
    given: HashMap<(Kind, String), String>,
    /// Names that may still be compared.
    left: usize,
}

impl Default for Hints<'_> {
    fn default() -> Self {
        Hints { by_start: HashMap::new(), given: HashMap::new(), left: MOST_COMPARED }
    }
}

impl<'b> Hints<'b> {
    /// The reason why nothing matches, and the similar names. `called` are the target's types of that name, of any kind;
    /// `miss` is the reason why the first candidate did not match.
    pub(super) fn missing(
        &mut self,
        pair: &Pair<'_>,
        target: &'b Btf,
        called: &[TypeId],
        kind: RelocationKind,
        local: &Spec,
        miss: Option<Miss>,
    ) -> String {
        match miss {
            None => self.no_candidate(pair, target, called, local.root),
            Some(miss) => self.missed(pair, kind, local, miss),
        }
    }

    fn no_candidate(&mut self, pair: &Pair<'_>, target: &'b Btf, called: &[TypeId], root: TypeId) -> String {
        let wanted = pair.local.name(root);
        let kind = pair.local.btf.kind(root);
        if let Some(other) = called.first() {
            let kinds = (kind.label(), pair.target.btf.kind(*other).label());
            return format!("no {wanted}: {} is called so, and is {}, not {}", other, kinds.1, kinds.0);
        }
        let name = essential_name(pair.local.btf.name(root));
        ["no type ", &wanted, &self.similar_type(target, kind, name)].concat()
    }

    fn similar_type(&mut self, btf: &'b Btf, kind: Kind, name: &str) -> String {
        let Some(first) = name.bytes().next().filter(|_| self.left > 0) else { return String::new() };
        let key = (kind, name.to_owned());
        if let Some(hint) = self.given.get(&key) {
            return hint.clone();
        }
        let by_start = self.by_start.entry(kind).or_insert_with(|| {
            let mut by_start = vec![Vec::new(); 256];
            for id in btf.ids().filter(|id| btf.kind(*id) == kind) {
                let name = btf.name(id);
                let first = name.bytes().next().and_then(|first| by_start.get_mut(usize::from(first)));
                first.into_iter().for_each(|names: &mut Vec<&str>| names.push(name));
            }
            by_start
        });
        // Comparing all names of a kernel would take longer than the rest of the work.
        let same_start = by_start.get(usize::from(first)).into_iter().flatten();
        let hint = similar(&mut self.left, name, same_start.copied());
        self.given.insert(key, hint.clone());
        hint
    }

    fn missed(&mut self, pair: &Pair<'_>, kind: RelocationKind, local: &Spec, miss: Miss) -> String {
        let theirs = |id| pair.target.name(id);
        match miss {
            Miss::NoStruct(id) => format!("{} has no members", theirs(id)),
            Miss::NoMember { within, wanted } => {
                let member = pair.local.btf.member_as_written(wanted.ty, wanted.index);
                let name = member.map_or("", |member| member.name);
                let names = member_names(pair.target.btf, within, self.left);
                let similar = similar(&mut self.left, name, names.into_iter());
                [&theirs(within), " has no member ", &cut(name), &similar].concat()
            }
            Miss::WrongType { local, target } => {
                format!("the member is {}, not {}", theirs(target), pair.local.name(local))
            }
            Miss::NoArray(id) => format!("{} is no array", theirs(id)),
            Miss::Beyond { index, nelems } => format!("element {index} of an array of {nelems}"),
            Miss::NoConstant(id) => {
                let wanted = local.text(pair.local.btf, kind);
                let constants = pair.target.btf.enumerators(pair.target.btf.resolve(id));
                let similar = similar(&mut self.left, &wanted, constants.map(|constant| constant.name));
                format!("{} has no constant {wanted}{similar}", theirs(id))
            }
            Miss::Different(id) => {
                let verb = if kind == RelocationKind::TypeMatches { "does not match" } else { "is not compatible" };
                format!("{} {id} {verb}", theirs(id))
            }
        }
    }
}

/// The names in `names` that look like `wanted`, as the end of a sentence. `left` is the number of names that may still be
/// compared.
fn similar<'n>(left: &mut usize, wanted: &str, names: impl Iterator<Item = &'n str>) -> String {
    let mut compared = 0;
    let names = names.take(*left).inspect(|_| compared += 1);
    let hint = hint(&nearest(wanted, names));
    *left = left.saturating_sub(compared + 1);
    hint
}

/// Names of a struct's members, including members of anonymous ones.
fn member_names(btf: &Btf, id: TypeId, most: usize) -> Vec<&str> {
    let mut names = Vec::new();
    let mut todo = vec![(btf.resolve(id), 0)];
    while let Some((composite, depth)) = todo.pop() {
        for member in btf.members(composite) {
            if names.len() + todo.len() >= most {
                return names;
            }
            let inner = btf.resolve(member.ty);
            if !member.name.is_empty() {
                names.push(member.name);
            } else if depth < 8 && matches!(btf.kind(inner), Kind::Struct | Kind::Union) {
                todo.push((inner, depth + 1));
            }
        }
    }
    names
}
