//! The capabilities of this process, for the record.

use serde::Serialize;

use crate::kernel::{capability, privilege};

/// The capabilities that this process holds, and those that a run needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// The capabilities that are effective when the run begins. A bit without a name in this list is shown as its
    /// number.
    pub held: Vec<String>,
    /// The capabilities that loading and attaching take. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON. Before 5.8
    /// CAP_SYS_ADMIN is listed in place of these two. Until 5.10 CAP_SYS_RESOURCE is listed too, though a large
    /// RLIMIT_MEMLOCK makes up for it.
    pub needed: Vec<String>,
}

impl Capabilities {
    /// Ask the kernel for the capabilities; none if the kernel does not tell.
    #[must_use]
    pub fn ask() -> Option<Self> {
        let needed = privilege::needed().ok()?.iter().map(|one| one.name.to_owned());
        Some(Self { held: privilege::effective().ok()?.names(), needed: needed.collect() })
    }

    /// Note that maps count against RLIMIT_MEMLOCK on this kernel.
    pub fn take_memlock(&mut self) {
        self.needed.push(capability::SYS_RESOURCE.name.to_owned());
    }
}
