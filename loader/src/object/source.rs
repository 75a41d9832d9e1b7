//! Where BTF comes from: a file of BTF, or an ELF file with a `.BTF` section.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Btf, elf};

/// The running kernel's own BTF (Linux 5.4 and newer with `CONFIG_DEBUG_INFO_BTF=y`).
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where a kernel's image that has its types may lie, `{}` being its release: the places and the order of libbpf's
/// `btf__load_vmlinux_btf` (src/btf.c).
const IMAGES: [&str; 7] = [
    "boot/vmlinux-{}",
    "lib/modules/{}/vmlinux-{}",
    "lib/modules/{}/build/vmlinux",
    "usr/lib/modules/{}/kernel/vmlinux",
    "usr/lib/debug/boot/vmlinux-{}",
    "usr/lib/debug/boot/vmlinux-{}.debug",
    "usr/lib/debug/lib/modules/{}/vmlinux",
];

/// The longest file that is read whole, in bytes. A kernel's BTF has about six million.
pub const MAX_FILE: u64 = 256 << 20;

/// Why there are no bytes.
#[derive(Debug)]
pub enum SourceError {
    /// The file cannot be opened or read.
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file is longer than [`MAX_FILE`].
    TooLong {
        /// Which.
        path: PathBuf,
    },
    /// The file is neither BTF nor an ELF file with BTF in it.
    NotBtf {
        /// Which.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceError::Io { path, error } => write!(f, "cannot read {}: {error}", path.display()),
            SourceError::TooLong { path } => {
                write!(f, "{} is longer than {} MiB", path.display(), MAX_FILE >> 20)
            }
            SourceError::NotBtf { path, what } => write!(f, "{} holds no BTF: {what}", path.display()),
        }
    }
}

impl std::error::Error for SourceError {}

/// Reads a file of at most [`MAX_FILE`] bytes.
///
/// # Errors
/// The file cannot be read, or is longer.
pub fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    let io = |error| SourceError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(io)?;
    // Room for the size that the file claims, at most; it may grow, or be a device without end.
    let claimed = file.metadata().map_err(io)?.len();
    if claimed > MAX_FILE {
        return Err(SourceError::TooLong { path: path.to_owned() });
    }
    let mut bytes = Vec::with_capacity(claimed as usize + 1);
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(SourceError::TooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

/// Where the types of the running kernel, of this release, are: [`KERNEL_BTF`], or, where there is no such file, the first
/// image of it that has them. libbpf finds the same.
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

/// Reads BTF data, not parsed yet: a file that is BTF, such as [`KERNEL_BTF`], or the `.BTF` section of an ELF file for
/// any machine.
///
/// # Errors
/// The file cannot be read, is too long, or holds no BTF.
pub fn read_btf(path: &Path) -> Result<Vec<u8>, SourceError> {
    let io = |error| SourceError::Io { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(4).read_to_end(&mut magic).map_err(io)?;
    let section = match *magic {
        [0x7f, b'E', b'L', b'F'] => elf::section_of_file(file, ".BTF", MAX_FILE),
        [0x9f, 0xeb, ..] | [0xeb, 0x9f, ..] => return read_file(path),
        _ => elf::section(&read_file(path)?, ".BTF").map(|section| section.map(<[u8]>::to_vec)),
    };
    let not = |what: String| SourceError::NotBtf { path: path.to_owned(), what };
    section
        .map_err(|refused| not(refused.to_string()))?
        .ok_or_else(|| not("the ELF file has no .BTF section".to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::object::btf::tests::sample;

    #[test]
    fn images_are_looked_for_where_libbpf_does_in_its_order() {
        let root = std::env::temp_dir().join(format!("xctl-source-{}", std::process::id()));
        let found = || find_below(&root, "5.4.0-x").map(|path| path.strip_prefix(&root).unwrap().to_owned());
        assert_eq!(found(), None);
        // The last place first, so that each is found before those that were there already.
        let places = IMAGES.iter().map(|place| place.replace("{}", "5.4.0-x")).rev();
        for (place, big_endian) in places.chain([KERNEL_BTF[1..].to_owned()]).zip([false, true].into_iter().cycle()) {
            let path = root.join(&place);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let before = found();
            std::fs::write(&path, "no types").unwrap();
            // libbpf too takes the kernel's own for good.
            let stays = if place == KERNEL_BTF[1..] { Some(place.clone().into()) } else { before };
            assert_eq!(found(), stays, "{place} holds none");
            std::fs::write(&path, sample(big_endian).0).unwrap();
            assert_eq!(found(), Some(place.into()));
        }
        std::fs::remove_dir_all(&root).unwrap();
    }
}
