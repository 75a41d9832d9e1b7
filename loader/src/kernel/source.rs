//! The sources of BTF: a file of BTF, or an ELF file with a `.BTF` section.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::object::{Btf, elf};

/// The running kernel's own BTF (Linux 5.4 and newer with `CONFIG_DEBUG_INFO_BTF=y`).
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The places where a kernel's image with types may lie; `{}` is the kernel's release. Places and order are those of
/// libbpf's `btf__load_vmlinux_btf` (src/btf.c).
const IMAGES: [&str; 7] = [
    "boot/vmlinux-{}",
    "lib/modules/{}/vmlinux-{}",
    "lib/modules/{}/build/vmlinux",
    "usr/lib/modules/{}/kernel/vmlinux",
    "usr/lib/debug/boot/vmlinux-{}",
    "usr/lib/debug/boot/vmlinux-{}.debug",
    "usr/lib/debug/lib/modules/{}/vmlinux",
];

/// The longest file that is read whole, in bytes. A kernel's BTF has about six million bytes.
pub const MAX_FILE: u64 = 256 << 20;

/// Reads a file of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// The file cannot be read, or is longer than that.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read {}", path.display());
    let check = |length| {
        ensure!(length <= MAX_FILE, "{} is longer than {} MiB", path.display(), MAX_FILE >> 20);
        Ok(length)
    };
    let file = File::open(path).with_context(what)?;
    // The buffer starts with at most the size that the file claims. The file may grow, or be a device without end.
    let claimed = check(file.metadata().with_context(what)?.len())?;
    let mut bytes = Vec::with_capacity(claimed as usize + 1);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).with_context(what)?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// The file with the types of the running kernel, which has this release. The file is [`KERNEL_BTF`] or, if that does
/// not exist, the first image of the kernel that has types. libbpf finds the same file.
pub fn find(release: &str) -> Option<PathBuf> {
    find_below(Path::new("/"), release)
}

fn find_below(root: &Path, release: &str) -> Option<PathBuf> {
    let own = root.join(KERNEL_BTF.trim_start_matches('/'));
    if own.exists() {
        return Some(own);
    }
    let mut places = IMAGES.iter().map(|place| root.join(place.replace("{}", release)));
    places.find(|path| read_btf(path).is_ok_and(|bytes| Btf::from_vec(bytes).is_ok()))
}

/// Reads BTF data without parsing it. The file is BTF, such as [`KERNEL_BTF`], or an ELF file for any machine with a
/// `.BTF` section.
///
/// # Errors
/// The file cannot be read, is too long, or holds no BTF.
pub fn read_btf(path: &Path) -> Result<Vec<u8>> {
    let what = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).with_context(what)?;
    let section = match *magic {
        [0x7f, b'E', b'L', b'F'] => elf::section_of_file(file, ".BTF", MAX_FILE),
        [0x9f, 0xeb, ..] | [0xeb, 0x9f, ..] => return read_file(path),
        _ => elf::section(&read_file(path)?, ".BTF").map(|section| section.map(<[u8]>::to_vec)),
    };
    match section {
        Ok(Some(section)) => Ok(section),
        Ok(None) => bail!("{} holds no BTF: the ELF file has no .BTF section", path.display()),
        Err(refused) => bail!("{} holds no BTF: {refused}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::btf::samples::sample;

    #[test]
    fn images_are_looked_for_where_libbpf_does_in_its_order() {
        let root = std::env::temp_dir().join(format!("xctl-source-{}", std::process::id()));
        let found = || find_below(&root, "5.4.0-x").map(|path| path.strip_prefix(&root).unwrap().to_owned());
        assert_eq!(found(), None);
        // The last place is written first, so that each place is found before those that were there already.
        let places = IMAGES.iter().map(|place| place.replace("{}", "5.4.0-x")).rev();
        for (place, big_endian) in places.chain([KERNEL_BTF[1..].to_owned()]).zip([false, true].into_iter().cycle()) {
            let path = root.join(&place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let before = found();
            std::fs::write(&path, "no types").unwrap();
            // libbpf too stays with the kernel's own file.
            let stays = if place == KERNEL_BTF[1..] { Some(place.clone().into()) } else { before };
            assert_eq!(found(), stays, "{place} holds none");
            std::fs::write(&path, sample(big_endian).0).unwrap();
            assert_eq!(found(), Some(place.into()));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
