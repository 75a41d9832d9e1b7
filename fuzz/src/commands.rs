//! `xctl inspect`, as far as it does not ask the host.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

#[path = "../../loader/src/commands/inspect/mod.rs"]
pub mod inspect;

fn btf_path(_: Option<&Path>) -> PathBuf {
    unreachable!("no file is read here")
}

fn read_btf(_: &Path) -> anyhow::Result<Cow<'static, [u8]>> {
    unreachable!("no file is read here")
}

fn object(_: Option<&Path>) -> anyhow::Result<(Vec<u8>, String)> {
    unreachable!("no file is read here")
}
