//! How much of memory an access is about.

use super::spec::Spec;
use super::{RelocationKind, Types};
use crate::object::btf::Btf;

/// What an access takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// `sizeof`, in bytes: of the field, for a bitfield of the type that it is declared with; of a constant's enum; of the
    /// type, if the question is about one. None for what has no size.
    pub size: Option<u32>,
    /// Bits of a bitfield; none if it is not one.
    pub bits: Option<u32>,
}

/// Tells extents in an object's types, or in a target's.
#[derive(Clone, Copy, Debug)]
pub struct Extents<'b>(Types<'b>);

impl<'b> Extents<'b> {
    /// In an object's types.
    #[must_use]
    pub fn local(btf: &'b Btf) -> Self {
        Extents(Types::local(btf))
    }

    /// In a target's types.
    #[must_use]
    pub fn target(btf: &'b Btf) -> Self {
        Extents(Types::target(btf))
    }

    /// Of an access that was found in these types.
    #[must_use]
    pub fn of(&self, kind: RelocationKind, spec: &Spec) -> Extent {
        let Extents(types) = self;
        let of = |id| Extent { size: types.size(id), bits: None };
        if kind.is_type() {
            return of(spec.root);
        }
        match (spec.last_member(types.btf), spec.last()) {
            (Some(member), _) if kind.is_field() => {
                Extent { bits: Some(member.bitfield_size).filter(|bits| *bits > 0), ..of(member.ty) }
            }
            (_, Some(step)) => of(step.ty),
            (_, None) => Extent::default(),
        }
    }
}
