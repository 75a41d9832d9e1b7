//! The sums of all connections of each network namespace, for `--verify`: an iterator shows those that are open, also those
//! without an owner.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};

use super::seed::iterator::split;
use crate::kernel::bpf;
use crate::kernel::loaded::LoadedObject;
use crate::kernel::netns;
use crate::kernel::tcp_counters::own_rtnl;
use crate::model::events::NetnsKey;
use crate::model::reading::Account;
use crate::verify::Ledger;
use crate::verify::sums::{Open, Tally, note_open};

/// The program that writes the accounts of the open connections of a network namespace.
pub const LIST: &str = "it_accounts";

/// The iterator, which is attached.
pub struct AllOpen(OwnedFd);

/// The open connections of each namespace.
pub type ByNetns = HashMap<NetnsKey, Result<Open, String>>;

impl AllOpen {
    pub(super) fn attach(object: &LoadedObject) -> Result<Self> {
        let link = bpf::attach_iterator(object.program(LIST)?);
        Ok(Self(link.context("the kernel refuses to attach the iterator over TCP sockets")?))
    }

    /// Read the connections that are open now, in every namespace that /proc leads to.
    pub(super) fn read(&self) -> Result<ByNetns> {
        let mut all = ByNetns::new();
        for netns in netns::all()? {
            let read = || {
                let mut open = Open::new();
                let file = bpf::iterate_again(self.0.as_fd()).context("cannot begin an iteration")?;
                split(file, |account: Account| note_open(&mut open, &account))?;
                Ok((own_rtnl()?, open))
            };
            match netns.inside(read) {
                Ok(None) => {}
                Ok(Some((rtnl, open))) => drop(all.insert(NetnsKey { inum: netns.inode, rtnl }, Ok(open))),
                Err(error) => {
                    let why = format!("its sockets cannot be read: {error:#}");
                    all.insert(NetnsKey { inum: netns.inode, rtnl: 0 }, Err(why));
                }
            }
        }
        Ok(all)
    }
}

/// Add the connections that ended. The caller has noted every account that was written while the open ones were read.
pub(super) fn sums(open: ByNetns, tally: &Tally) -> Ledger {
    let sums =
        |(netns, open): (NetnsKey, Result<Open, String>)| (netns, open.map(|open| tally.with_open(netns, &open)));
    open.into_iter().map(sums).collect()
}
