//! Kernels that do not show their types: xctl takes the types from a BTF that xctl has cut down, or from an image of the
//! kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use nix::sys::utsname::uname;

use super::lossy_link;
use crate::host::Set;
use crate::process::Process;
use crate::tracefs::private_mounts;
use crate::xctl::{Xctl, command, refusal};
use crate::{Family, Outcome, Verdict};

const BTF: &str = "/sys/kernel/btf";

/// Runs `work` without /sys/kernel/btf. Only this thread, and processes that it starts, do not see the folder.
pub(super) fn hidden<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let inside = || {
        private_mounts()?;
        tmpfs(Path::new(BTF))?;
        work()
    };
    thread::spawn(inside).join().map_err(|_| anyhow!("the thread panicked"))?
}

fn tmpfs(on: &Path) -> Result<()> {
    mount(Some("none"), on, Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("hiding {}", on.display()))
}

/// A file that is removed with the case.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The output of `xctl btf --min` for this kernel's BTF.
fn cut() -> Result<(Scratch, u64)> {
    let file = Scratch(std::env::temp_dir().join(format!("xctl-cut-{}.btf", std::process::id())));
    let status = command(&["btf", "--min", file.0.to_str().context("not UTF-8")?])?.output()?;
    ensure!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let size = file.0.metadata()?.len();
    ensure!(size < 8192, "{size} bytes are not a few kilobytes");
    Ok((file, size))
}

/// The mission itself, with the few kilobytes that were cut out of this kernel's BTF as the only BTF.
pub fn cut_down(set: Set, family: Family) -> Outcome {
    let (file, size) = cut()?;
    let path = file.0.to_str().context("not UTF-8")?.to_owned();
    if set == Set::Fentry {
        let args = move || command(&["trace", "--json", "--attach", "fentry", "--btf", &path]);
        let said = hidden(move || refusal(Process::start("xctl by fentry", args()?)?, 3))?;
        ensure!(said.contains("the kernel's own BTF"), "it does not say what is missing: {said:?}");
        return Ok(Verdict::Passed("says that fentry programs need the kernel's own".into()));
    }
    let start = || {
        let given = path.clone();
        let xctl = hidden(move || Xctl::start(set, &["--btf", &given]))?;
        ensure!(xctl.ready.btf == path, "it takes {}", xctl.ready.btf);
        Ok(xctl)
    };
    match lossy_link::run_with(family, start)? {
        Verdict::Passed(note) => Ok(Verdict::Passed(format!("{size} bytes; {note}"))),
        skipped => Ok(skipped),
    }
}

/// An image of the kernel with its types is where distributions put it. libbpf finds the image too: libbpf looks up the
/// type ids of iterators and fentry programs.
pub fn image(set: Set, _family: Family) -> Outcome {
    let types = fs::read(Path::new(BTF).join("vmlinux")).context("this kernel's BTF")?;
    let image = format!("/boot/vmlinux-{}", uname()?.release().to_string_lossy());
    fs::create_dir_all("/boot")?;
    let path = image.clone();
    let xctl = hidden(move || {
        tmpfs(Path::new("/boot"))?;
        fs::write(&path, types)?;
        Xctl::start(set, &["--seed", "iterator"])
    })?;
    ensure!(xctl.ready.btf == image, "it takes {}", xctl.ready.btf);
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed(format!("takes {image}")))
}
