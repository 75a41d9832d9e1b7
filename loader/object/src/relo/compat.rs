//! The rules for which types may stand for each other. There are three rules, from lax to strict: for the field at the end
//! of a path, for "does this type exist", and for "does this type match".

use super::candidates::same_kind;
use super::{Types, essential_name};
use crate::btf::{Kind, Member, TypeId};
use crate::steps::Steps;

/// The number of steps through pointers and arrays, and of levels of parameters and members, after which libbpf gives up.
const MAX_DEPTH: u32 = 32;

/// A pair of types to compare: the object's and the target's.
#[derive(Clone, Copy)]
pub(super) struct Pair<'a> {
    pub(super) local: Types<'a>,
    pub(super) target: Types<'a>,
    pub(super) steps: &'a Steps,
}

fn members(types: Types<'_>, id: TypeId) -> impl Iterator<Item = Member<'_>> {
    (0..types.btf.entry_count(id)).map_while(move |index| types.btf.member_as_written(id, index))
}

fn too_deep() -> String {
    "the types are nested too deep to be compared".to_owned()
}

impl Pair<'_> {
    fn kinds(&self, local: TypeId, target: TypeId) -> (Kind, Kind) {
        (self.local.btf.kind(local), self.target.btf.kind(target))
    }

    /// Whether `name` without its flavour is `essential`.
    pub(super) fn is_essentially(&self, name: &str, essential: &str) -> Result<bool, String> {
        self.steps.text(essential.len() + name.len())?;
        Ok(name.starts_with(essential) && essential_name(name).len() == essential.len())
    }

    fn same_name(&self, local: TypeId, target: TypeId) -> Result<bool, String> {
        self.is_essentially(self.target.btf.name(target), essential_name(self.local.btf.name(local)))
    }

    /// Old compilers described bitfields by integers that begin in the middle of their storage.
    fn plain_ints(&self, local: TypeId, target: TypeId) -> bool {
        let offsets = (self.local.btf.int(local), self.target.btf.int(target));
        matches!(offsets, (Some(one), Some(two)) if one.bit_offset == 0 && two.bit_offset == 0)
    }

    /// Whether a field of type `local` may be relocated to one of type `target`. Any struct or union goes with any other,
    /// any pointer with any pointer, any integer with any integer.
    pub(super) fn fields(&self, local: TypeId, target: TypeId) -> Result<bool, String> {
        let (mut local, mut target) = (local, target);
        // libbpf has no limit here, because no compiler makes an array of itself.
        for _ in 0..MAX_DEPTH {
            self.steps.take(1)?;
            local = self.local.btf.resolve(local);
            target = self.target.btf.resolve(target);
            let (kind, other) = self.kinds(local, target);
            if kind.is_composite() && other.is_composite() {
                return Ok(true);
            }
            if !same_kind(kind, other) {
                return Ok(false);
            }
            return Ok(match kind {
                Kind::Ptr | Kind::Float => true,
                Kind::Fwd | Kind::Enum | Kind::Enum64 => {
                    let anonymous = self.local.btf.name(local).is_empty() || self.target.btf.name(target).is_empty();
                    anonymous || self.same_name(local, target)?
                }
                Kind::Int => self.plain_ints(local, target),
                Kind::Array => {
                    (local, target) = self.elements(local, target);
                    continue;
                }
                _ => false,
            });
        }
        Err(too_deep())
    }

    fn elements(&self, local: TypeId, target: TypeId) -> (TypeId, TypeId) {
        let elem = |types: Types<'_>, id| types.btf.array(id).map_or(TypeId::VOID, |array| array.elem);
        (elem(self.local, local), elem(self.target, target))
    }

    fn same_param_count(&self, local: TypeId, target: TypeId) -> bool {
        self.local.btf.proto_param_count(local) == self.target.btf.proto_param_count(target)
    }

    /// The types of both functions' parameters, in pairs.
    fn params(&self, local: TypeId, target: TypeId) -> impl Iterator<Item = (TypeId, TypeId)> {
        let count = self.local.btf.proto_param_count(local);
        let (ours, theirs) = (self.local.btf, self.target.btf);
        (0..count).map_while(move |index| ours.proto_param(local, index).zip(theirs.proto_param(target, index)))
    }

    fn returns(&self, local: TypeId, target: TypeId) -> (TypeId, TypeId) {
        (self.local.btf.proto_return(local), self.target.btf.proto_return(target))
    }

    /// Whether the target's type counts as the object's for an existence check: both are of the same kind, with any
    /// contents. The names of the types were compared before. The names of types that they refer to do not matter.
    pub(super) fn types(&self, local: TypeId, target: TypeId) -> Result<bool, String> {
        self.types_at(local, target, MAX_DEPTH)
    }

    fn types_at(&self, local: TypeId, target: TypeId, level: u32) -> Result<bool, String> {
        let (mut local, mut target) = (local, target);
        let (kind, other) = self.kinds(local, target);
        if !same_kind(kind, other) {
            return Ok(false);
        }
        for _ in 0..MAX_DEPTH {
            self.steps.take(1)?;
            local = self.local.btf.resolve(local);
            target = self.target.btf.resolve(target);
            let (kind, other) = self.kinds(local, target);
            if !same_kind(kind, other) {
                return Ok(false);
            }
            match kind {
                Kind::Void | Kind::Struct | Kind::Union | Kind::Enum | Kind::Enum64 | Kind::Fwd => return Ok(true),
                Kind::Int => return Ok(self.plain_ints(local, target)),
                Kind::Ptr => (local, target) = (self.local.btf.target(local), self.target.btf.target(target)),
                Kind::Array => (local, target) = self.elements(local, target),
                Kind::FuncProto => {
                    if !self.same_param_count(local, target) {
                        return Ok(false);
                    }
                    for (one, two) in self.params(local, target) {
                        let level = level.checked_sub(1).ok_or_else(too_deep)?;
                        let (one, two) = (self.local.btf.resolve(one), self.target.btf.resolve(two));
                        if !self.types_at(one, two, level)? {
                            return Ok(false);
                        }
                    }
                    (local, target) = self.returns(local, target);
                }
                _ => return Ok(false),
            }
        }
        Err(too_deep())
    }

    /// Whether the target's type has everything that the object's type has, by name and of the same shape.
    pub(super) fn shapes(&self, local: TypeId, target: TypeId) -> Result<bool, String> {
        self.shapes_at(local, target, false, MAX_DEPTH)
    }

    fn shapes_at(&self, local: TypeId, target: TypeId, behind: bool, level: u32) -> Result<bool, String> {
        if level == 0 {
            return Err(too_deep());
        }
        let (mut local, mut target, mut behind) = (local, target, behind);
        for _ in 0..MAX_DEPTH {
            self.steps.take(1)?;
            local = self.local.btf.resolve(local);
            target = self.target.btf.resolve(target);
            if !self.same_name(local, target)? {
                return Ok(false);
            }
            let (kind, other) = self.kinds(local, target);
            match kind {
                Kind::Void => return Ok(other == Kind::Void),
                Kind::Fwd => {
                    let union = self.local.btf.fwd_is_union(local);
                    let same_fwd = other == Kind::Fwd && union == self.target.btf.fwd_is_union(target);
                    let defined = behind && other == if union { Kind::Union } else { Kind::Struct };
                    return Ok(same_fwd || defined);
                }
                Kind::Struct | Kind::Union if behind => {
                    // The target of a pointer need only have the same name.
                    let declared = other == Kind::Fwd && (kind == Kind::Union) == self.target.btf.fwd_is_union(target);
                    return Ok(kind == other || declared);
                }
                Kind::Struct | Kind::Union => {
                    return if kind == other { self.composites(local, target, level) } else { Ok(false) };
                }
                Kind::Enum | Kind::Enum64 => {
                    return if other.is_enum() { self.enums(local, target) } else { Ok(false) };
                }
                Kind::Int => {
                    let ints = (self.local.btf.int(local), self.target.btf.int(target));
                    return Ok(matches!(ints, (Some(a), Some(b)) if a.size == b.size && a.signed == b.signed));
                }
                Kind::Ptr if other == kind => {
                    behind = true;
                    (local, target) = (self.local.btf.target(local), self.target.btf.target(target));
                }
                Kind::Array if other == kind => {
                    let count = |types: Types<'_>, id| types.btf.array(id).map(|array| array.nelems);
                    if count(self.local, local) != count(self.target, target) {
                        return Ok(false);
                    }
                    (local, target) = self.elements(local, target);
                }
                Kind::FuncProto if other == kind => {
                    if !self.same_param_count(local, target) {
                        return Ok(false);
                    }
                    for (one, two) in self.params(local, target) {
                        if !self.shapes_at(one, two, behind, level - 1)? {
                            return Ok(false);
                        }
                    }
                    (local, target) = self.returns(local, target);
                }
                _ => return Ok(false),
            }
        }
        Err(too_deep())
    }

    /// Every member of the object's struct is in the target's, by name and shape.
    fn composites(&self, local: TypeId, target: TypeId, level: u32) -> Result<bool, String> {
        if self.local.btf.entry_count(local) > self.target.btf.entry_count(target) {
            return Ok(false);
        }
        for one in members(self.local, local) {
            let wanted = essential_name(one.name);
            let mut matched = false;
            for two in members(self.target, target) {
                if !self.is_essentially(two.name, wanted)? {
                    continue;
                }
                if self.shapes_at(one.ty, two.ty, false, level - 1)? {
                    matched = true;
                    break;
                }
            }
            if !matched {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every constant of the object's enum is in the target's, by name; the values may differ.
    fn enums(&self, local: TypeId, target: TypeId) -> Result<bool, String> {
        let (ours, theirs) = (self.local.btf, self.target.btf);
        if self.local.size(local) != self.target.size(target) || ours.entry_count(local) > theirs.entry_count(target) {
            return Ok(false);
        }
        for one in ours.enumerators(local) {
            let wanted = essential_name(one.name);
            let mut matched = false;
            for two in theirs.enumerators(target) {
                if self.is_essentially(two.name, wanted)? {
                    matched = true;
                    break;
                }
            }
            if !matched {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
