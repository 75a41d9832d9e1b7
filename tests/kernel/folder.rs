//! A folder of a case.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A new folder for files of a case. It is removed with its content when dropped.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Result<Folder> {
        let path = std::env::temp_dir().join(format!("xctl-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder(path))
    }

    /// The path of a file in the folder, also as text.
    pub fn file(&self, name: &str) -> (PathBuf, String) {
        let path = self.0.join(name);
        let text = path.display().to_string();
        (path, text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
