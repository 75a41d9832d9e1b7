//! `xctl btf`: C definitions of kernel types, from BTF. Needs no privilege.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::object::{Btf, KERNEL_BTF, cdef, read_btf, source};

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// Types, as in a list: `struct sock`, `sock_common`, `struct sock: sk_protocol`.
    pub types: Vec<String>,
    /// A file that lists types, one a line.
    pub list: Option<PathBuf>,
    /// BTF to use instead of the running kernel's: raw, or an ELF file with a `.BTF` section.
    pub btf: Option<PathBuf>,
}

/// Writes a C header with the types to `out`.
///
/// # Errors
/// BTF that cannot be read, a list that cannot, a type or member that the BTF does not have.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    if args.types.is_empty() && args.list.is_none() {
        bail!(
            "which types? For example:\n  \
             xctl btf 'struct sock' 'struct sock_common'\n  \
             xctl btf 'struct sock: sk_protocol sk_type'\n  \
             xctl btf --list vmlinux/types.list"
        );
    }
    let mut entries = Vec::new();
    if let Some(path) = &args.list {
        let text = source::read_file(path)?;
        let text = String::from_utf8(text).with_context(|| format!("{} is not text", path.display()))?;
        entries = cdef::parse_list(&text).with_context(|| path.display().to_string())?;
    }
    for text in &args.types {
        entries.push(cdef::parse_entry(text)?);
    }
    let path = args.btf.as_deref().unwrap_or(Path::new(KERNEL_BTF));
    let bytes = read_btf(path).with_context(|| match args.btf {
        Some(_) => "reading BTF".to_owned(),
        None => "this kernel's BTF (needs Linux 5.4 or newer with CONFIG_DEBUG_INFO_BTF=y; \
                 --btf FILE takes another's)"
            .to_owned(),
    })?;
    let btf = Btf::from_vec(bytes).with_context(|| path.display().to_string())?;
    let header = cdef::header(&btf, &entries, &made_by(args)).with_context(|| match &args.list {
        Some(list) => format!("{} for {}", list.display(), path.display()),
        None => path.display().to_string(),
    })?;
    out.write_all(header.as_bytes()).context("writing the definitions")
}

/// The command that makes the same again: the list and the types, but no fact about this host.
fn made_by(args: &Args) -> String {
    let mut command = "xctl btf".to_owned();
    if let Some(list) = &args.list {
        // An absolute path would be different on every machine.
        let shown = if list.is_absolute() { list.file_name().map(Path::new).unwrap_or(list) } else { list };
        command.push_str(&format!(" --list {}", shown.display()));
    }
    for text in &args.types {
        command.push_str(&format!(" '{text}'"));
    }
    command
}
