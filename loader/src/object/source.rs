//! Where BTF comes from: a file of BTF, or an ELF file with a `.BTF` section.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::elf;

/// The running kernel's own BTF (Linux 5.4 and newer with `CONFIG_DEBUG_INFO_BTF=y`).
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The longest file that is read, in bytes. A kernel's BTF has about six million; a vmlinux with debug information more.
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

/// Reads BTF data, not parsed yet: a file that is BTF, such as [`KERNEL_BTF`], or the `.BTF` section of an ELF file for
/// any machine.
///
/// # Errors
/// The file cannot be read, is too long, or holds no BTF.
pub fn read_btf(path: &Path) -> Result<Vec<u8>, SourceError> {
    let bytes = read_file(path)?;
    match bytes.get(..2) {
        Some([0x9f, 0xeb] | [0xeb, 0x9f]) => Ok(bytes),
        _ => match elf::section(&bytes, ".BTF") {
            Ok(Some(section)) => Ok(section.to_vec()),
            Ok(None) => {
                Err(SourceError::NotBtf { path: path.to_owned(), what: "the ELF file has no .BTF section".to_owned() })
            }
            Err(refused) => Err(SourceError::NotBtf { path: path.to_owned(), what: refused.to_string() }),
        },
    }
}
