//! One file or folder a command.

pub mod btf;
pub mod doctor;
mod filters;
pub mod inspect;
pub mod report;
pub mod sockets;
pub mod trace;

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::{LEAST_SOCKETS, MOST_SOCKETS};
use crate::console::say;
use crate::error::{Blocked, Exit};
use crate::kernel::source::{self, KERNEL_BTF};
use crate::kernel::{self, host, netns, privilege};
use crate::model::embedded;

/// Standard output. Its errors name standard output.
pub fn stdout() -> impl io::Write {
    Named(io::stdout().lock())
}

/// Another writer to standard output. Its errors name standard output too.
struct Named<W>(W);

impl<W: io::Write> io::Write for Named<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(name)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(name)
    }
}

fn name(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

/// The BTF file to use: `--btf`, or this kernel's own, or an image of this kernel.
fn btf_path(asked: Option<&Path>) -> PathBuf {
    asked.map(Path::to_owned).or_else(host::own_btf).unwrap_or_else(|| KERNEL_BTF.into())
}

/// The bytes of the BTF in a file.
fn read_btf(path: &Path) -> Result<Cow<'static, [u8]>> {
    kernel::btf::read(path)
}

/// Whether /proc and /sys are mounted.
fn check_mounts() -> Result<()> {
    match host::not_mounted() {
        None => Ok(()),
        Some((root, remedy)) => Err(Blocked::new(format!("{root} is not mounted"), remedy).by_host()),
    }
}

/// Whether this process may load and attach.
fn check_privilege() -> Result<()> {
    check_mounts()?;
    let missing = privilege::missing().context(Exit::Host)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|capability| capability.name).collect();
    Err(Blocked::new(format!("missing {}", names.join(" and ")), "run it as root, or give it these capabilities")
        .by_host())
}

/// The bytes of the object in this file, or of the object inside this binary; and a name for messages.
fn object(path: Option<&Path>) -> Result<(Vec<u8>, String)> {
    let Some(path) = path else {
        let shown = "the object inside this binary".to_owned();
        return Ok((embedded::object().context(shown.clone())?, shown));
    };
    let bytes = source::read_file(path)?;
    Ok((bytes, path.display().to_string()))
}

/// Report that nothing leads to the network namespace of `--netns`, if so. The namespace may be made later.
fn say_absent(wanted: &[u32]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let there = netns::all()?;
    for wanted in wanted.iter().filter(|wanted| !there.iter().any(|netns| netns.inode == **wanted)) {
        say(format_args!(
            "--netns {wanted}: no visible process is in such a network namespace, and no mount leads to one"
        ));
    }
    Ok(())
}

/// Four times the number of sockets that exist now, so that the map has room for more.
fn default_max_sockets() -> Result<u32> {
    let sockets = host::tcp_sockets()?.saturating_mul(4);
    Ok(sockets.clamp(LEAST_SOCKETS, MOST_SOCKETS))
}
