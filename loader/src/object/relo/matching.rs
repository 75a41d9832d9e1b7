//! The same access in the types of the target: found by the names of members, never by their numbers.

use super::compat::Pair;
use super::spec::{MAX_STEPS, Spec, Step, is_flexible};
use super::{RelocationKind, Work, essential_name};
use crate::object::btf::{Member, TypeId};

/// Why a candidate is not it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The path goes on into something that has no members.
    NoStruct(TypeId),
    /// The target's struct `within` has no member with the name of the object's.
    NoMember {
        /// The target's.
        within: TypeId,
        /// The object's member.
        wanted: Step,
    },
    /// It has one, of a type that cannot stand for the object's.
    WrongType {
        /// The object's member's.
        local: TypeId,
        /// The target's member's.
        target: TypeId,
    },
    /// The path goes on into an element of something that is no array.
    NoArray(TypeId),
    /// The target's array is shorter.
    Beyond {
        /// The element.
        index: u32,
        /// Elements there are.
        nelems: u32,
    },
    /// The target's enum has no constant of that name.
    NoConstant(TypeId),
    /// A type as a whole that differs too much.
    Different(TypeId),
}

/// What was found in a struct.
enum Found {
    /// The member, whose type is this.
    Yes(TypeId),
    /// No member of that name.
    No,
    /// One of that name, whose type cannot stand for the object's.
    Wrong(TypeId),
}

fn too_many_steps() -> String {
    format!("the target's structs are nested more than {MAX_STEPS} deep")
}

impl Pair<'_> {
    /// What `spec`, in the object's types, is in the target's type `root`.
    ///
    /// # Errors
    /// What libbpf refuses to go on after: types that cannot be measured or never end.
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
            // The first step is an element of an array that is only imagined.
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

    /// Looks for a member by name in the target's struct `id` and the anonymous ones within, in their order; on success
    /// `found` has the steps and bits that lead to it.
    fn member(&self, wanted: &Member<'_>, id: TypeId, found: &mut Spec) -> Result<Found, String> {
        let id = self.target.btf.resolve(id);
        let is_composite = self.target.btf.kind(id).is_composite();
        let count = if is_composite { self.target.btf.entry_count(id) } else { 0 };
        self.work.spend(Work::COMPARISON)?;
        if count > 0 && found.raw.len() == MAX_STEPS {
            return Err(too_many_steps());
        }
        let each = 1 + wanted.name.len() as u32 / 32;
        let mut looked_at = 0;
        for (index, member) in self.target.btf.members_called(id, wanted.name) {
            self.work.spend((index - looked_at).saturating_mul(each))?;
            looked_at = index;
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
                // At most as deep as there are steps.
                match self.member(wanted, member.ty, found)? {
                    Found::No => {
                        found.raw.pop();
                        found.bit_offset = before;
                    }
                    other => return Ok(other),
                }
            }
        }
        self.work.spend((count - looked_at).saturating_mul(each))?;
        Ok(Found::No)
    }
}
