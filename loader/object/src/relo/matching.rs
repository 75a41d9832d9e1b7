//! Finds the object's access in the types of the target: by the names of members, never by their numbers.

use super::compat::Pair;
use super::spec::{MAX_STEPS, Spec, Step, is_flexible};
use super::{RelocationKind, essential_name};
use crate::btf::{Member, TypeId};

/// The reason why a candidate does not match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The path continues into a type that has no members.
    NoStruct(TypeId),
    /// The target's struct `within` has no member with the name of the object's member.
    NoMember {
        /// The target's struct.
        within: TypeId,
        /// The object's member.
        wanted: Step,
    },
    /// The target's struct has a member of that name, but the member's type cannot stand for the object's.
    WrongType {
        /// The type of the object's member.
        local: TypeId,
        /// The type of the target's member.
        target: TypeId,
    },
    /// The path continues into an element of a type that is no array.
    NoArray(TypeId),
    /// The target's array is shorter.
    Beyond {
        /// The element.
        index: u32,
        /// The number of elements in the target's array.
        nelems: u32,
    },
    /// The target's enum has no constant of that name.
    NoConstant(TypeId),
    /// The type as a whole differs too much.
    Different(TypeId),
}

/// The result of a search for a member in a struct.
enum Found {
    /// The struct has the member, of this type.
    Yes(TypeId),
    /// The struct has no member of that name.
    No,
    /// The struct has a member of that name, but the member's type cannot stand for the object's.
    Wrong(TypeId),
}

fn too_many_steps() -> String {
    format!("the target's structs are nested more than {MAX_STEPS} deep")
}

impl Pair<'_> {
    /// The path in the target's type `root` that corresponds to `spec`, a path in the object's types.
    ///
    /// # Errors
    /// The types have no computable size, or never end; libbpf gives up there.
    pub(super) fn find(&self, spec: &Spec, kind: RelocationKind, root: TypeId) -> Result<Result<Spec, Miss>, String> {
        let mut found = Spec::new(root);
        if kind.is_type() {
            let fits = match kind {
                RelocationKind::TypeMatches => self.shapes(spec.root, root)?,
                _ => self.types(spec.root, root)?,
            };
            return Ok(if fits { Ok(found) } else { Err(Miss::Different(root)) });
        }
        if kind.is_enumval() {
            return self.constant(spec, root);
        }
        let mut id = root;
        for (number, step) in spec.steps.iter().enumerate() {
            id = self.target.btf.resolve(id);
            if step.named {
                let wanted = self.local.btf.member_as_written(step.ty, step.index);
                let wanted = wanted.ok_or("a member that the object does not have")?;
                if !self.target.btf.kind(id).is_composite() {
                    return Ok(Err(Miss::NoStruct(id)));
                }
                id = match self.member(&wanted, id, &mut found)? {
                    Found::Yes(ty) => ty,
                    Found::No => return Ok(Err(Miss::NoMember { within: id, wanted: *step })),
                    Found::Wrong(target) => return Ok(Err(Miss::WrongType { local: wanted.ty, target })),
                };
                continue;
            }
            // The first step is an element of an imagined array.
            if number > 0 {
                let Some(array) = self.target.btf.array(id) else { return Ok(Err(Miss::NoArray(id))) };
                if step.index >= array.nelems && !is_flexible(self.target.btf, found.last(), array.nelems) {
                    return Ok(Err(Miss::Beyond { index: step.index, nelems: array.nelems }));
                }
                id = self.target.btf.resolve(array.elem);
            }
            if found.raw.len() == MAX_STEPS {
                return Err(too_many_steps());
            }
            found.raw.push(step.index);
            found.steps.push(Step { ty: id, index: step.index, named: false });
            let size =
                self.target.size(id).ok_or_else(|| format!("the target's {} has no size", self.target.name(id)))?;
            found.advance(step.index, size)?;
        }
        Ok(Ok(found))
    }

    /// The constant of the same essential name in the target's enum.
    fn constant(&self, spec: &Spec, root: TypeId) -> Result<Result<Spec, Miss>, String> {
        let wanted = spec.last().and_then(|step| self.local.btf.enumerator(step.ty, step.index));
        let wanted = essential_name(wanted.ok_or("a constant that the object does not have")?.name);
        let id = self.target.btf.resolve(root);
        for (index, constant) in (0..).zip(self.target.btf.enumerators(id)) {
            if self.is_essentially(constant.name, wanted)? {
                let mut found = Spec::new(root);
                found.raw.push(index);
                found.steps.push(Step { ty: id, index, named: true });
                return Ok(Ok(found));
            }
        }
        Ok(Err(Miss::NoConstant(root)))
    }

    /// Looks for a member by name in the target's struct `id` and in the anonymous ones within, in their order. On success
    /// `found` has the steps and bits that lead to the member.
    fn member(&self, wanted: &Member<'_>, id: TypeId, found: &mut Spec) -> Result<Found, String> {
        let id = self.target.btf.resolve(id);
        let is_composite = self.target.btf.kind(id).is_composite();
        let count = if is_composite { self.target.btf.entry_count(id) } else { 0 };
        if count > 0 && found.raw.len() == MAX_STEPS {
            return Err(too_many_steps());
        }
        // Most names differ in their first byte, so the name's length does not count.
        self.steps.take(1 + count as usize)?;
        for (index, member) in self.target.btf.members_called(id, wanted.name) {
            if member.name == wanted.name {
                if !self.fields(wanted.ty, member.ty)? {
                    return Ok(Found::Wrong(member.ty));
                }
                found.raw.push(index);
                found.advance_bits(member.bit_offset)?;
                found.steps.push(Step { ty: id, index, named: true });
                return Ok(Found::Yes(member.ty));
            }
            if member.name.is_empty() {
                let before = found.bit_offset;
                found.raw.push(index);
                found.advance_bits(member.bit_offset)?;
                // The recursion is at most as deep as the most steps of a path.
                match self.member(wanted, member.ty, found)? {
                    Found::No => {
                        found.raw.pop();
                        found.bit_offset = before;
                    }
                    other => return Ok(other),
                }
            }
        }
        Ok(Found::No)
    }
}
