//! The part of memory that an access is about.

use super::spec::Spec;
use super::{RelocationKind, Types};
use crate::btf::Btf;

/// The size of an access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// `sizeof`, in bytes: of a field; of the declared type of a bitfield; of a constant's enum; of the type, if the
    /// question is about a type. None for anything without a size.
    pub size: Option<u32>,
    /// Width of a bitfield in bits; none if the access is not to a bitfield.
    pub bits: Option<u32>,
}

/// Computes extents in an object's types, or in a target's.
#[derive(Clone, Copy, Debug)]
pub struct Extents<'b>(Types<'b>);

impl<'b> Extents<'b> {
    /// Extents in an object's types.
    #[must_use]
    pub fn local(btf: &'b Btf) -> Self {
        Extents(Types::local(btf))
    }

    /// Extents in a target's types.
    #[must_use]
    pub fn target(btf: &'b Btf) -> Self {
        Extents(Types::target(btf))
    }

    /// The extent of an access that was found in these types.
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
