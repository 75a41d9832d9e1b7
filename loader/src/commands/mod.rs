//! One file a command.

pub mod btf;
pub mod doctor;
pub mod inspect;
pub mod sockets;
pub mod trace;

use std::borrow::Cow;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cli::{LEAST_SOCKETS, MOST_SOCKETS};
use crate::embedded;
use crate::fault::{Blocked, Exit};
use crate::kernel::{self, host, netns, privilege};
use crate::object::KERNEL_BTF;
use crate::object::source::{self, SourceError};
use crate::say::say;

/// Whether an error only says that nobody reads our output any more (`xctl | head`): no reason to complain.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Standard output, whose errors say that they are its own.
pub fn stdout() -> impl io::Write {
    Named(io::stdout().lock())
}

/// Standard output by another writer, whose errors say so too.
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

/// The BTF to use: the one that was asked for, or else this kernel's own, or what an image of it has.
fn btf_path(asked: Option<&Path>) -> PathBuf {
    asked.map(Path::to_owned).or_else(host::own_btf).unwrap_or_else(|| KERNEL_BTF.into())
}

/// The bytes of the BTF in a file.
fn read_btf(path: &Path) -> Result<Cow<'static, [u8]>, SourceError> {
    kernel::btf::read(path)
}

/// Whether the kernel can be asked at all.
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

/// The bytes of the object in this file, or of the one inside this binary, and what to call it.
fn object(path: Option<&Path>) -> Result<(Vec<u8>, String)> {
    let Some(path) = path else {
        let shown = "the object inside this binary".to_owned();
        return Ok((embedded::object().context(shown.clone())?, shown));
    };
    let bytes = source::read_file(path)?;
    Ok((bytes, path.display().to_string()))
}

/// Says that nothing leads to the network namespace that is asked for. It may be one that is yet to come.
fn say_absent(netns: Option<u32>) -> Result<()> {
    let Some(wanted) = netns else { return Ok(()) };
    if !netns::all()?.iter().any(|netns| netns.inode == wanted) {
        say(format_args!(
            "--netns {wanted}: no process that may be seen is in such a network namespace, and no mount leads there"
        ));
    }
    Ok(())
}

/// Four times the sockets that exist now, so that the map has room for those to come.
fn default_max_sockets() -> Result<u32> {
    let sockets = host::tcp_sockets()?.saturating_mul(4);
    Ok(sockets.clamp(LEAST_SOCKETS, MOST_SOCKETS))
}
