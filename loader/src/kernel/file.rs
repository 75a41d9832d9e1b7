//! The kernel's own files (/proc, /sys) as text.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Read a file of /proc or /sys.
///
/// # Errors
/// If the file cannot be read; the message names the file.
pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
