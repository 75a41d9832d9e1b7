//! The types of the running kernel's modules, which libbpf searches, too.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::kernel::source::KERNEL_BTF;
use crate::object::facts::{ExternFacts, Facts};
use crate::object::relo::essential_name;
use crate::object::sort;

/// Searches the modules for the externs that the kernel's own BTF does not have.
pub(super) fn look_up_externs(facts: &mut Facts<'_>, folder: &Path) {
    let absent = |one: &ExternFacts<'_>| one.in_btf == Some(false);
    let names = facts.externs.iter().filter(|one| absent(one)).map(|one| essential_name(one.name));
    let there = named_in(folder, names);
    for one in facts.externs.iter_mut().filter(|one| absent(one)) {
        one.in_btf = Some(there.contains(essential_name(one.name).as_bytes()));
    }
}

/// Those of `names` that the BTF of a module in `folder` has. A module's BTF builds on the kernel's and is not parsed here: a
/// name among its strings decides.
pub(super) fn named_in<N: AsRef<[u8]>>(folder: &Path, names: impl IntoIterator<Item = N>) -> BTreeSet<Vec<u8>> {
    let names = sort::set(names.into_iter().map(|name| name.as_ref().to_vec()));
    let mut there = BTreeSet::new();
    if names.is_empty() {
        return there;
    }
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    for file in files.filter(|path| path.file_name() != Path::new(KERNEL_BTF).file_name()) {
        // Every name ends with NUL, and follows one.
        let Ok(bytes) = fs::read(file) else { continue };
        let strings = bytes.split(|byte| *byte == 0);
        there.extend(strings.filter(|found| names.contains(*found)).map(<[u8]>::to_vec));
    }
    there
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_module_has_is_there() {
        let folder = std::env::temp_dir().join(format!("xctl-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // The file vmlinux is the kernel's own BTF, which was searched before.
        fs::write(folder.join("vmlinux"), b"\0nowhere\0").unwrap();
        fs::write(folder.join("one"), b"BTF\0in_one\0\0").unwrap();
        fs::write(folder.join("two"), b"BTF\0in_two\0nowhere_else\0").unwrap();
        let one = |name| ExternFacts { name, weak: false, kind: Some("function"), in_btf: Some(false) };
        let mut facts = Facts { externs: vec![one("in_two"), one("nowhere"), one("in_one___v2")], ..Facts::default() };
        look_up_externs(&mut facts, &folder);
        fs::remove_dir_all(&folder).unwrap();
        let found: Vec<_> = facts.externs.iter().map(|one| one.in_btf).collect();
        assert_eq!(found, [Some(true), Some(false), Some(true)]);
    }
}
