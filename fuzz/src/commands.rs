//! `xctl inspect`, as far as it does not ask the host.

use std::path::{Path, PathBuf};

#[path = "../../loader/src/commands/inspect.rs"]
pub mod inspect;

fn btf_path(_: Option<&Path>) -> PathBuf {
    unreachable!("no file is read here")
}

fn object(_: Option<&Path>) -> anyhow::Result<(Vec<u8>, String)> {
    unreachable!("no file is read here")
}
