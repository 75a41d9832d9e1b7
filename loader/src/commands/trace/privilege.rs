//! Giving up privilege once every program is attached.

use anyhow::{Context, Result};

use crate::cli::TraceOptions;
use crate::console::say;
use crate::kernel::capability::{self, Capabilities};
use crate::kernel::confine::{Needs, confine};
use crate::kernel::privilege::{self, User, switch_user};
use crate::kernel::server::At;
use crate::trace::tables::Tables;

/// Become the user of `--user`, and give up capabilities and system calls. Most of them are no longer needed.
/// `terminal`: a full-screen view needs its terminal.
///
/// # Errors
/// If the kernel refuses.
pub fn give_up_privilege(options: &TraceOptions, user: Option<User>, tables: &Tables, terminal: bool) -> Result<()> {
    if let Some(user) = user {
        switch_user(user)?;
    }
    if options.no_sandbox && user.is_none() {
        return Ok(());
    }
    let held = privilege::effective()?;
    let mut keep = Vec::new();
    if options.verify {
        keep.extend([capability::SYS_ADMIN, capability::SYS_PTRACE, capability::DAC_READ_SEARCH]);
    }
    let files = options.metrics_file.is_some();
    let names = files || options.record.is_some() || matches!(options.metrics, Some(At::Unix(_)));
    if names {
        // A file may lie in another user's folder, or in one where only its owner may rename and remove.
        keep.extend([capability::DAC_OVERRIDE, capability::FOWNER]);
    }
    // Until 5.18 unprivileged_bpf_disabled also forbids reading maps that are open already.
    if !privilege::works_without(|| tables.counts())? {
        keep.push(if held.has(capability::BPF) { capability::BPF } else { capability::SYS_ADMIN });
    }
    privilege::keep_only(Capabilities::of(&keep).and(held))?;
    if options.no_sandbox {
        return Ok(());
    }
    privilege::no_new_privileges()?;
    match confine(Needs { namespaces: options.verify, names, files, terminal, clients: options.metrics.is_some() }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            say(format_args!("this kernel has no seccomp filters, so system calls are not limited: {error}"));
            Ok(())
        }
        result => result.context("cannot limit system calls (--no-sandbox runs without the limit)"),
    }
}
