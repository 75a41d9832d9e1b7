//! Access to tracefs, which a host need not have mounted.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::{panic, thread};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const TRACING: &str = "/sys/kernel/tracing";

/// Calls `work` with the mount point of tracefs. If tracefs is not mounted, mounts it for this thread alone.
pub fn with<T: Send>(work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    let tracing = Path::new(TRACING);
    if tracing.join("events").exists() {
        return work(tracing);
    }
    with_private_mounts(|| {
        mount(Some("none"), tracing, Some("tracefs"), MsFlags::empty(), None::<&str>).context("mounting tracefs")?;
        work(tracing)
    })
}

/// Calls `work` in a separate thread. Only this thread, and processes that it starts, see its mounts.
pub fn with_private_mounts<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let inside = || {
        private_mounts()?;
        work()
    };
    thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
}

pub fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).context("making mounts private")
}

/// Writes one command to a file of tracefs. The command is appended, so that commands of others stay.
pub fn write(file: &Path, command: &str) -> Result<()> {
    let opened = OpenOptions::new().append(true).open(file);
    opened
        .and_then(|mut file| file.write_all(command.as_bytes()))
        .with_context(|| format!("writing {command:?} to {}", file.display()))
}

/// Whether the kernel has a trace event of this name.
pub fn has_event(name: &str) -> Result<bool> {
    with(|tracing| {
        let systems = tracing.join("events").read_dir().context("reading which events there are")?;
        Ok(systems.flatten().any(|system| system.path().join(name).is_dir()))
    })
}
