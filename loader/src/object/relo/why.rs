//! Why nothing in the target matches, for a person to act on.

use super::compat::Pair;
use super::matching::Miss;
use super::spec::Spec;
use super::{RelocationKind, cut, essential_name};
use crate::object::btf::{Btf, Kind, TypeId};
use crate::object::nearest::{hint, nearest};

/// Names that are compared to find similar ones.
const MOST_NAMES: usize = 4096;

/// The reason, and what is similar. `called` are the target's types of that name, of any kind; `miss` is why the first
/// candidate was not it.
pub(super) fn missing(
    pair: &Pair<'_>,
    called: &[TypeId],
    kind: RelocationKind,
    local: &Spec,
    miss: Option<Miss>,
) -> String {
    match miss {
        None => no_candidate(pair, called, local.root),
        Some(miss) => missed(pair, kind, local, miss),
    }
}

fn no_candidate(pair: &Pair<'_>, called: &[TypeId], root: TypeId) -> String {
    let wanted = pair.local.name(root);
    if let Some(other) = called.first() {
        let kinds = (pair.local.btf.kind(root).label(), pair.target.btf.kind(*other).label());
        return format!("no {wanted}: {} is called so, and is {}, not {}", other, kinds.1, kinds.0);
    }
    let kind = pair.local.btf.kind(root);
    let name = essential_name(pair.local.btf.name(root));
    let first = name.as_bytes().first();
    let btf = pair.target.btf;
    // All names of a kernel would take longer to compare than the rest of the work.
    let names = btf.ids().filter(|id| btf.kind(*id) == kind).map(|id| btf.name(id));
    let similar = nearest(name, names.filter(|other| other.as_bytes().first() == first).take(MOST_NAMES));
    format!("no type {}{}", cut(&wanted), hint(&similar))
}

fn missed(pair: &Pair<'_>, kind: RelocationKind, local: &Spec, miss: Miss) -> String {
    let theirs = |id| pair.target.name(id);
    match miss {
        Miss::NoStruct(id) => format!("{} has no members", theirs(id)),
        Miss::NoMember { within, wanted } => {
            let member = pair.local.btf.member_as_written(wanted.ty, wanted.index);
            let name = member.map_or("", |member| member.name);
            let names = member_names(pair.target.btf, within);
            let similar = nearest(name, names.iter().map(String::as_str));
            format!("{} has no member {}{}", theirs(within), cut(name), hint(&similar))
        }
        Miss::WrongType { local, target } => {
            format!("the member is {}, not {}", theirs(target), pair.local.name(local))
        }
        Miss::NoArray(id) => format!("{} is no array", theirs(id)),
        Miss::Beyond { index, nelems } => format!("element {index} of an array of {nelems}"),
        Miss::NoConstant(id) => {
            let wanted = local.text(pair.local.btf, kind);
            let names =
                pair.target.btf.enumerators(pair.target.btf.resolve(id)).map(|constant| constant.name).take(MOST_NAMES);
            format!("{} has no constant {wanted}{}", theirs(id), hint(&nearest(&wanted, names)))
        }
        Miss::Different(id) => {
            let verb = if kind == RelocationKind::TypeMatches { "does not match" } else { "is not compatible" };
            format!("{} {id} {verb}", theirs(id))
        }
    }
}

/// Names of a struct's members, those in anonymous ones too.
fn member_names(btf: &Btf, id: TypeId) -> Vec<String> {
    let mut names = Vec::new();
    let mut todo = vec![(btf.resolve(id), 0)];
    while let Some((composite, depth)) = todo.pop() {
        for member in btf.members(composite) {
            if names.len() + todo.len() >= MOST_NAMES {
                return names;
            }
            let inner = btf.resolve(member.ty);
            if !member.name.is_empty() {
                names.push(member.name.to_owned());
            } else if depth < 8 && matches!(btf.kind(inner), Kind::Struct | Kind::Union) {
                todo.push((inner, depth + 1));
            }
        }
    }
    names
}
