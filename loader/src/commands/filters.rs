//! Filters, looked up on this host. They become settings of the programs, or a test for sockets of a listing.

use std::iter;

use anyhow::{Context, Result};

use crate::cli;
use crate::error::Exit;
use crate::kernel::{cgroup, netns};
use crate::model::events::{self, COMM_LEN, FILTER_VALUES, Kind, Settings, SocketRecord, address};
use crate::model::network::Network;
use crate::trace::seed::holders::Process;

/// Filters. A filter without values lets everything pass. A socket passes another filter if it matches one of the values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pids: Vec<u32>,
    comms: Vec<String>,
    ports: Vec<u16>,
    networks: Vec<Network>,
    /// Inode numbers of network namespaces.
    pub netns: Vec<u32>,
    /// Ids and depths of cgroup v2 directories.
    cgroups: Vec<(u64, u32)>,
    family: Option<u8>,
    kinds: Vec<Kind>,
    states: Vec<u8>,
}

impl Filters {
    /// Look up the network namespaces and the cgroups that the user names.
    ///
    /// # Errors
    /// [`Exit::Usage`] if a namespace or a cgroup does not exist.
    pub fn find(asked: &cli::Filters) -> Result<Self> {
        let cli::Filters { pids, comms, ports, networks, netns, cgroups, family, kinds, states } = asked.clone();
        let netns = netns.iter().map(|name| netns::find(name)).collect::<Result<_>>().context(Exit::Usage)?;
        let cgroups = cgroups.iter().map(|path| cgroup::id(path)).collect::<Result<_>>().context(Exit::Usage)?;
        Ok(Self { pids, comms, ports, networks, netns, cgroups, family, kinds, states })
    }

    /// The filters as settings of the programs.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let Self { pids, comms, ports, networks, netns, cgroups, family, kinds, states: _ } = self;
        let padded = |comm: &String| {
            let mut padded = [0; COMM_LEN];
            padded[..comm.len()].copy_from_slice(comm.as_bytes());
            padded
        };
        Settings {
            networks: list(networks.iter().copied()),
            cgroups: list(cgroups.iter().map(|(id, _)| *id)),
            cgroup_levels: list(cgroups.iter().map(|(_, level)| *level)),
            comms: list(comms.iter().map(padded)),
            netns: list(netns.iter().copied()),
            tgids: list(pids.iter().copied()),
            ports: list(ports.iter().map(|port| u32::from(*port))),
            family: family.unwrap_or_default(),
            kinds: kinds.iter().fold(0, |mask, &kind| mask | 1 << kind as u8),
            ..Settings::default()
        }
    }

    /// Like `wanted()` in filter.bpf.h, but a shared socket passes if one of its `holders` does. A socket is listed
    /// once.
    #[must_use]
    pub fn want(&self, socket: &SocketRecord, holders: &[Process]) -> bool {
        let Self { pids, comms, ports, networks, netns, cgroups, family, kinds: _, states } = self;
        let SocketRecord { flow, owner, state, .. } = socket;
        let owned_by = |pid: &u32| owner.tgid == *pid || holders.iter().any(|holder| holder.tgid == *pid);
        let named = |name: &String| {
            let mut names = iter::once(&owner.comm).chain(holders.iter().map(|holder| &holder.comm));
            names.any(|comm| events::comm(comm) == *name)
        };
        let of = |network: &Network| network.contains(flow.saddr) || network.contains(flow.daddr);
        (pids.is_empty() || pids.iter().any(owned_by))
            && (comms.is_empty() || comms.iter().any(named))
            && (ports.is_empty() || ports.contains(&flow.sport) || ports.contains(&flow.dport))
            && (networks.is_empty() || networks.iter().any(of))
            && (netns.is_empty() || netns.contains(&flow.netns))
            && (cgroups.is_empty() || owner.in_cgroup != 0)
            && (states.is_empty() || states.contains(state))
            && family.is_none_or(|family| address(flow.saddr).is_ipv4() == (family == 4))
    }
}

/// A list as the programs read it. The command line takes no more values than a list has room for.
fn list<T: Copy + Default>(values: impl Iterator<Item = T>) -> [T; FILTER_VALUES] {
    let mut list = [T::default(); FILTER_VALUES];
    list.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_or_cgroup_that_is_not_there_is_wrong_usage() {
        let netns = cli::Filters { netns: vec!["/nonexistent".into()], ..cli::Filters::default() };
        let cgroup = cli::Filters { cgroups: vec!["/proc".into()], ..cli::Filters::default() };
        for wrong in [netns, cgroup] {
            let error = Filters::find(&wrong).unwrap_err();
            assert_eq!(Exit::code_of(&error), 2, "{wrong:?}: {error:#}");
        }
    }
}
