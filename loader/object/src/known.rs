//! The helpers, map types, program types and map flags of a kernel, by the enums in its BTF.
//!
//! A BTF without such an enum tells nothing. One that was cut down may have a part of it, which tells nothing, either.

use std::collections::BTreeSet;

use super::btf::{Btf, Kind, TypeId};
use super::sort;

/// A flag in the kernel's enum of flags for maps, which has no name (include/uapi/linux/bpf.h).
const A_MAP_FLAG: &str = "BPF_F_NO_PREALLOC";

/// `bpf_probe_read_kernel`, which came with Linux 5.5, and its number.
const PROBE_READ_KERNEL: i32 = 113;

/// Helpers that libbpf replaces where the kernel does not have them (`bpf_probe_read_user`, `_kernel`, `_user_str`,
/// `_kernel_str`).
const REPLACED: std::ops::RangeInclusive<i32> = 112..=115;

/// The enums of one kernel.
#[derive(Clone, Debug, Default)]
pub struct Known {
    helpers: Option<BTreeSet<i128>>,
    map_types: Option<BTreeSet<i128>>,
    program_types: Option<Vec<String>>,
    map_flags: Option<u32>,
}

impl Known {
    /// Reads the enums.
    #[must_use]
    pub fn of(kernel: &Btf) -> Self {
        let mut known = Known::default();
        for id in kernel.ids().filter(|id| kernel.kind(*id) == Kind::Enum) {
            match kernel.name(id) {
                "bpf_func_id" => known.helpers = whole(kernel, id),
                "bpf_map_type" => known.map_types = whole(kernel, id),
                "bpf_prog_type" => {
                    let all = || names(kernel, id).map(str::to_owned).collect();
                    known.program_types = whole(kernel, id).map(|_| all());
                }
                "" if names(kernel, id).next() == Some(A_MAP_FLAG) => {
                    known.map_flags = Some(values(kernel, id).into_iter().fold(0, |all, flag| all | flag as u32));
                }
                _ => {}
            }
        }
        known
    }

    /// True if the kernel has no helper of this number, and libbpf puts no other in its place.
    #[must_use]
    pub fn lacks_helper(&self, number: i32) -> bool {
        let lacks = |helpers: &BTreeSet<i128>| number == 0 || !helpers.contains(&number.into());
        !REPLACED.contains(&number) && self.helpers.as_ref().is_some_and(lacks)
    }

    /// True if the kernel has no map type of this number.
    #[must_use]
    pub fn lacks_map_type(&self, number: u32) -> bool {
        self.map_types.as_ref().is_some_and(|types| !types.contains(&number.into()))
    }

    /// True if the kernel has no program type that libbpf calls so, such as `socket_filter`.
    #[must_use]
    pub fn lacks_program_type(&self, name: &str) -> bool {
        let wanted = format!("BPF_PROG_TYPE_{}", name.to_uppercase());
        self.program_types.as_ref().is_some_and(|types| !types.contains(&wanted))
    }

    /// Those of these flags for maps that no map of the kernel can have.
    #[must_use]
    pub fn lacks_map_flags(&self, flags: u32) -> u32 {
        self.map_flags.map_or(0, |known| flags & !known)
    }

    /// True if the verifier treats the contents of a frozen map as constants: Linux 5.5 and newer (`bpf_map_direct_read`).
    /// The BTF does not list that function, but it lists a helper that came with the same version.
    #[must_use]
    pub fn reads_frozen_maps(&self) -> bool {
        self.helpers.as_ref().is_some_and(|helpers| helpers.contains(&PROBE_READ_KERNEL.into()))
    }
}

/// The constants of an enum, without the one that only counts them (`__BPF_FUNC_MAX_ID`).
fn constants(kernel: &Btf, id: TypeId) -> impl Iterator<Item = super::btf::Enumerator<'_>> {
    kernel.enumerators(id).filter(|one| !one.name.starts_with("__"))
}

fn names(kernel: &Btf, id: TypeId) -> impl Iterator<Item = &str> {
    constants(kernel, id).map(|one| one.name)
}

fn values(kernel: &Btf, id: TypeId) -> BTreeSet<i128> {
    sort::set(constants(kernel, id).map(|one| one.value))
}

/// The values of an enum that is whole: the kernel numbers these from 0 on, without gaps.
fn whole(kernel: &Btf, id: TypeId) -> Option<BTreeSet<i128>> {
    let values = values(kernel, id);
    (values.len() > 1 && values.iter().copied().eq(0..values.len() as i128)).then_some(values)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::btf::samples::Builder;

    fn known(of: &[(&str, &[(&str, i64)])]) -> Known {
        let mut types = Builder::new(false);
        of.iter().for_each(|(name, constants)| {
            types.enumeration(name, 4, false, constants);
        });
        Known::of(&Btf::from_vec(types.finish()).unwrap())
    }

    #[test]
    fn a_part_of_an_enum_tells_nothing() {
        let helpers = [("BPF_FUNC_unspec", 0), ("BPF_FUNC_map_lookup_elem", 1), ("__BPF_FUNC_MAX_ID", 2)];
        let map_types = [("BPF_MAP_TYPE_UNSPEC", 0), ("BPF_MAP_TYPE_HASH", 1), ("BPF_MAP_TYPE_ARRAY", 2)];
        let program_types = [("BPF_PROG_TYPE_UNSPEC", 0), ("BPF_PROG_TYPE_SOCKET_FILTER", 1)];
        let whole =
            known(&[("bpf_func_id", &helpers), ("bpf_map_type", &map_types), ("bpf_prog_type", &program_types)]);
        assert!(whole.lacks_helper(2) && whole.lacks_helper(0) && !whole.lacks_helper(1));
        // libbpf puts another in its place.
        assert!(!whole.lacks_helper(113) && !whole.reads_frozen_maps());
        assert!(whole.lacks_map_type(3) && !whole.lacks_map_type(2));
        assert!(whole.lacks_program_type("xdp") && !whole.lacks_program_type("socket_filter"));
        let cut = known(&[
            ("bpf_func_id", &helpers[1..]),
            ("bpf_map_type", &[map_types[0], map_types[2]]),
            ("bpf_prog_type", &program_types[..1]),
        ]);
        assert!(!cut.lacks_helper(2) && !cut.lacks_map_type(3) && !cut.lacks_program_type("xdp"));
    }

    #[test]
    fn flags_of_maps_are_those_of_the_enum_without_a_name() {
        let flags = known(&[("", &[("OTHER", 8)]), ("", &[(A_MAP_FLAG, 1), ("BPF_F_NO_COMMON_LRU", 2)])]);
        assert_eq!(flags.lacks_map_flags(0b1111), 0b1100);
        assert_eq!(Known::default().lacks_map_flags(0b1111), 0);
    }
}
