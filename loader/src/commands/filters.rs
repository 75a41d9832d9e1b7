//! Filters, looked up on this host. They become settings of the programs, or a test for sockets of a listing.

use std::iter;

use anyhow::Result;

use crate::cli;
use crate::error::Exit;
use crate::kernel::{cgroup, netns};
use crate::model::events::{self, COMM_LEN, Kind, Settings, SocketRecord, address};
use crate::trace::seed::holders::Process;

/// Filters. A filter of `None` lets everything pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pid: Option<u32>,
    comm: Option<String>,
    port: Option<u16>,
    /// Inode number of a network namespace.
    pub netns: Option<u32>,
    /// Id and depth of a cgroup v2 directory.
    cgroup: Option<(u64, u32)>,
    family: Option<u8>,
    kinds: Vec<Kind>,
}

impl Filters {
    /// Look up the network namespace and the cgroup that the user names.
    ///
    /// # Errors
    /// [`Exit::Usage`] if the namespace or the cgroup does not exist.
    pub fn find(asked: &cli::Filters) -> Result<Self> {
        let cli::Filters { pid, comm, port, netns, cgroup, family, kinds } = asked.clone();
        let usage = |error: anyhow::Error| error.context(Exit::Usage);
        let netns = netns.map(|name| netns::find(&name)).transpose().map_err(usage)?;
        let cgroup = cgroup.map(|path| cgroup::id(&path)).transpose().map_err(usage)?;
        Ok(Self { pid, comm, port, netns, cgroup, family, kinds })
    }

    /// The filters as settings of the programs.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let Self { pid, comm, port, netns, cgroup, family, kinds } = self;
        let mut padded = [0; COMM_LEN];
        if let Some(comm) = comm {
            padded[..comm.len()].copy_from_slice(comm.as_bytes());
        }
        let (cgroup, cgroup_level) = cgroup.unwrap_or_default();
        Settings {
            cgroup,
            cgroup_level,
            netns: netns.unwrap_or_default(),
            tgid: pid.unwrap_or_default(),
            port: port.unwrap_or_default(),
            family: family.unwrap_or_default(),
            kinds: kinds.iter().fold(0, |mask, &kind| mask | 1 << kind as u8),
            comm: padded,
            ..Settings::default()
        }
    }

    /// Like `wanted()` in filter.bpf.h, but a shared socket passes if one of its `holders` does. A socket is listed
    /// once.
    #[must_use]
    pub fn want(&self, socket: &SocketRecord, holders: &[Process]) -> bool {
        let Self { pid, comm, port, netns, cgroup, family, kinds: _ } = self;
        let SocketRecord { flow, owner, .. } = socket;
        let family_is = |family| address(flow.saddr).is_ipv4() == (family == 4);
        let owned_by = |pid: u32| owner.tgid == pid || holders.iter().any(|holder| holder.tgid == pid);
        let named = |name: &String| {
            let mut names = iter::once(&owner.comm).chain(holders.iter().map(|holder| &holder.comm));
            names.any(|comm| events::comm(comm) == *name)
        };
        pid.is_none_or(owned_by)
            && comm.as_ref().is_none_or(named)
            && port.is_none_or(|port| [flow.sport, flow.dport].contains(&port))
            && netns.is_none_or(|netns| flow.netns == netns)
            && (cgroup.is_none() || owner.in_cgroup != 0)
            && family.is_none_or(family_is)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_or_cgroup_that_is_not_there_is_wrong_usage() {
        let netns = cli::Filters { netns: Some("/nonexistent".into()), ..cli::Filters::default() };
        let cgroup = cli::Filters { cgroup: Some("/proc".into()), ..cli::Filters::default() };
        for wrong in [netns, cgroup] {
            let error = Filters::find(&wrong).unwrap_err();
            assert_eq!(Exit::code_of(&error), 2, "{wrong:?}: {error:#}");
        }
    }
}
