//! `xctl btf`: print C definitions of kernel types, from BTF; or cut that BTF down to the types that the object needs. The
//! command needs no privilege.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::{btf_path, read_btf};
use crate::cli::BtfOptions;
use crate::error::Exit;
use crate::kernel::source;
use crate::object::cut::{CutError, cut};
use crate::object::{Btf, cdef};
use crate::trace::target::ASKED;

/// Writes a C header with the types to `out`.
///
/// # Errors
/// The BTF or the list cannot be read, or the BTF lacks a type or member.
pub fn run(args: &BtfOptions, out: &mut dyn Write) -> Result<()> {
    if let Some(min) = &args.min {
        return write_min(args, min, out);
    }
    if args.types.is_empty() && args.list.is_none() {
        let why = "no type is named. For example:\n  \
                   xctl btf 'struct sock' 'struct sock_common'\n  \
                   xctl btf 'struct sock: sk_protocol sk_type'\n  \
                   xctl btf --list vmlinux/types.list";
        return Err(anyhow!(why).context(Exit::Usage));
    }
    let mut entries = Vec::new();
    if let Some(path) = &args.list {
        let text = source::read_file(path)?;
        let text = String::from_utf8(text).with_context(|| format!("{} is not text", path.display()))?;
        entries = cdef::parse_list(&text).with_context(|| path.display().to_string())?;
    }
    for text in &args.types {
        entries.push(cdef::parse_entry(text).map_err(|error| anyhow!(error).context(Exit::Usage))?);
    }
    let (path, btf) = whole(args)?;
    let header = cdef::header(&btf, &entries, &made_by(args)).with_context(|| match &args.list {
        Some(list) => format!("{} for {}", list.display(), path.display()),
        None => path.display().to_string(),
    })?;
    out.write_all(header.as_bytes()).context("cannot write the definitions")
}

/// The BTF that the user asked for, and its path.
fn whole(args: &BtfOptions) -> Result<(PathBuf, Btf)> {
    let path = btf_path(args.btf.as_deref());
    let bytes = read_btf(&path).with_context(|| match args.btf {
        Some(_) => "cannot read BTF".to_owned(),
        None => "cannot read this kernel's BTF: use Linux 5.4 or newer with CONFIG_DEBUG_INFO_BTF=y, or give another \
                 kernel's BTF with --btf FILE"
            .to_owned(),
    })?;
    let btf = Btf::from_cow(bytes).with_context(|| path.display().to_string())?;
    Ok((path, btf))
}

/// Write BTF that is cut down. Nothing is written unless the cut BTF gives the same answers as the whole one.
fn write_min(args: &BtfOptions, to: &Path, out: &mut dyn Write) -> Result<()> {
    let (path, btf) = whole(args)?;
    if to.canonicalize().ok().is_some_and(|to| path.canonicalize().is_ok_and(|path| path == to)) {
        let why = format!("{} would be replaced by a part of itself: --min names the file to write", to.display());
        return Err(anyhow!(why).context(Exit::Usage));
    }
    let (object, shown) = super::object(args.object.as_deref())?;
    let cut = cut(&object, &btf, &ASKED).map_err(|error| {
        let what = format!("{shown}, with the types of {}", path.display());
        match error {
            CutError::Object(_) | CutError::Misfit(_) => anyhow!(error).context(what).context(Exit::Object),
            CutError::Differs(_) => anyhow!(error).context(what),
        }
    })?;
    std::fs::write(to, &cut.bytes).with_context(|| format!("cannot write {}", to.display()))?;
    writeln!(
        out,
        "{}: {} types of {}, {} bytes of {}; all {} relocations of {shown} have the same results",
        to.display(),
        cut.types,
        btf.len(),
        cut.bytes.len(),
        btf.bytes().len(),
        cut.relocations
    )
    .context("cannot write the result")
}

/// A command that makes the same header again. It names the list and the types, but no fact about this host.
fn made_by(args: &BtfOptions) -> String {
    let mut command = "xctl btf".to_owned();
    if let Some(list) = &args.list {
        // An absolute path would differ between machines.
        let shown = if list.is_absolute() { list.file_name().map(Path::new).unwrap_or(list) } else { list };
        command.push_str(&format!(" --list {}", shown.display()));
    }
    for text in &args.types {
        command.push_str(&format!(" '{text}'"));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::source::KERNEL_BTF;

    fn fails(args: &BtfOptions) -> String {
        format!("{:#}", run(args, &mut Vec::new()).unwrap_err())
    }

    #[test]
    fn without_types_the_error_shows_examples() {
        assert!(fails(&BtfOptions::default()).contains("xctl btf --list vmlinux/types.list"));
    }

    #[test]
    fn errors_name_the_file_and_the_line() {
        let dir = std::env::temp_dir().join(format!("xctl-btf-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (list, other) = (dir.join("a.list"), dir.join("b.btf"));
        std::fs::write(&list, "# fine\nstruct a b c\n").unwrap();
        std::fs::write(&other, "int main;\n").unwrap();
        let error = fails(&BtfOptions { list: Some(list.clone()), ..BtfOptions::default() });
        assert!(error.contains("a.list: line 2: \"struct a b c\" is not a type"), "{error}");
        let types = vec!["sock".to_owned()];
        let error = fails(&BtfOptions { types: types.clone(), btf: Some(other), ..BtfOptions::default() });
        assert!(error.contains("b.btf holds no BTF: not an ELF file: it looks like text"), "{error}");
        let error = fails(&BtfOptions { types, btf: Some(dir.join("none")), ..BtfOptions::default() });
        assert!(error.contains("cannot read"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn the_named_command_is_the_same_everywhere() {
        let args = BtfOptions {
            list: Some("/home/me/types.list".into()),
            types: vec!["struct sock".into()],
            ..BtfOptions::default()
        };
        assert_eq!(made_by(&args), "xctl btf --list types.list 'struct sock'");
        let args = BtfOptions { list: Some("vmlinux/types.list".into()), ..BtfOptions::default() };
        assert_eq!(made_by(&args), "xctl btf --list vmlinux/types.list");
    }

    #[test]
    fn the_list_of_the_project_fits_this_kernel() {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vmlinux/types.list");
        if !Path::new(KERNEL_BTF).exists() || !list.exists() {
            return println!("skipped: needs {KERNEL_BTF} and {}", list.display());
        }
        let mut out = Vec::new();
        run(&BtfOptions { list: Some(list), ..BtfOptions::default() }, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for wanted in ["struct sock_common {", "struct tcp_sock {", "enum bpf_map_type {", "\tTCP_LISTEN = 10,"] {
            assert!(text.contains(wanted), "{wanted}");
        }
    }
}
