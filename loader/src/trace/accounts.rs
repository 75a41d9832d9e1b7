//! The accounts of connections: what each has counted when it ends, when another process takes it, and while it is open.

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, anyhow};

use super::all_open::{self, AllOpen, ByNetns};
use crate::kernel::bpf;
use crate::kernel::clock::{jiffies_per_second, monotonic_ns};
use crate::kernel::loaded::LoadedObject;
use crate::kernel::shared_ring::SharedRing;
use crate::ledger::balance::Balance;
use crate::ledger::connection::Connection;
use crate::ledger::group::{By, Gains};
use crate::ledger::row::{Folded, Row};
use crate::model::events::{Flow, Plain, ProcessKey};
use crate::model::maps::{LEDGER, SOCKETS};
use crate::model::reading::Account;
use crate::ring::shared;
use crate::verify::Ledger;
use crate::verify::sums::Tally;

/// The program that writes the account of an open connection.
pub const ACCOUNT: &str = "tr_account";

/// The number of keys whose connections are read before the ring is drained. The ring has room for 2,788 accounts: a connection of
/// MPTCP has one for each subflow.
const AT_ONCE: usize = 256;

/// In place of the number of a subflow: the program says how many there are.
const COUNT_SUBFLOWS: u64 = u64::MAX;

/// The most subflows of a connection that are read, as in subflows.bpf.h.
const SUBFLOWS: u32 = 64;

/// The attempts to read the subflows of a connection. Each fails only if one of them is removed within a microsecond.
const TRIES: usize = 100;

/// Where accounts come from, and their sums so far.
pub struct Accounts {
    ring: shared::Reader<SharedRing>,
    balance: Balance,
    /// The connections that have ended and were not taken out yet; none: nobody asks for them.
    ended: Option<Vec<Connection>>,
    /// The keys of SOCKET_TO_PID, while open connections are read. The room is kept for the next time.
    keys: Vec<u8>,
    /// With `--verify`: the open connections, and the sums of those that ended.
    all: Option<(AllOpen, Tally)>,
}

impl Accounts {
    /// Begin with the connections that SOCKET_TO_PID knows. The programs must be attached. With `events`, connections that
    /// end are kept for [`Accounts::take_ended`]. With `verify`, [`Accounts::read_all`] can be asked.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub(super) fn open(object: &LoadedObject, events: bool, verify: bool) -> Result<Self> {
        let ring = SharedRing::new(object.map(LEDGER)?).context("cannot map the ring of the ledger")?;
        let all = verify.then(|| AllOpen::attach(object)).transpose()?.map(|all| (all, Tally::default()));
        let balance = Balance::new(jiffies_per_second()?);
        let mut accounts =
            Self { ring: shared::Reader::new(ring), balance, ended: events.then(Vec::new), keys: Vec::new(), all };
        accounts.read_open(object)?;
        accounts.balance.begin(monotonic_ns()?);
        Ok(accounts)
    }

    /// Add the accounts that were written since the last call. Returns true if no account was still being written, as
    /// [`shared::Reader::drain`] does.
    ///
    /// # Errors
    /// If the ring or a record in it is malformed.
    pub fn drain(&mut self) -> Result<bool> {
        let Self { balance, ended: events, all, .. } = self;
        let mut wrong = None;
        let whole = self.ring.drain(|bytes| match bytes.get(..size_of::<Account>()) {
            Some(whole) => {
                let account = Account::get(whole);
                let ended = balance.note(&account);
                if let Some(events) = events {
                    events.extend(ended);
                }
                if let Some((_, tally)) = all {
                    tally.note(&account);
                }
            }
            None => wrong = Some(bytes.len()),
        })?;
        let Some(bytes) = wrong else { return Ok(whole) };
        Err(anyhow!("cannot read a record of {bytes} bytes in the ring of the ledger: it is too short"))
    }

    /// The connections that have ended since the last call.
    pub(super) fn take_ended(&mut self) -> impl Iterator<Item = Connection> {
        self.ended.iter_mut().flat_map(std::mem::take)
    }

    /// Read the connections that are open now. The programs must be attached, so that no end goes unseen.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    fn read_open(&mut self, object: &LoadedObject) -> Result<()> {
        let program = object.program(ACCOUNT)?;
        let mut keys = std::mem::take(&mut self.keys);
        keys.clear();
        let sockets = object.contents(SOCKETS)?;
        sockets.for_each(|key, _| keys.extend_from_slice(key)).context("cannot read the map SOCKET_TO_PID")?;
        for (place, key) in keys.chunks_exact(size_of::<Flow>()).enumerate() {
            read_one(program, key).context("cannot read what an open connection has counted")?;
            if place % AT_ONCE == AT_ONCE - 1 {
                self.drain()?;
            }
        }
        self.keys = keys;
        self.drain()?;
        Ok(())
    }

    /// Read all connections that are open now. None without `--verify`.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub fn read_all(&mut self) -> Result<Option<ByNetns>> {
        self.drain()?;
        let Some((all, tally)) = &mut self.all else { return Ok(None) };
        tally.begin();
        all.read().map(Some)
    }

    /// The sums of all connections. Call it after [`Accounts::read_all`], once [`Accounts::drain`] has read every account that
    /// was written meanwhile.
    #[must_use]
    pub fn sums(&mut self, open: ByNetns) -> Option<Ledger> {
        let (_, tally) = self.all.as_mut()?;
        let sums = all_open::sums(open, tally);
        tally.end();
        Some(sums)
    }

    /// Add the connections that are open at the end. The programs must still be attached.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub(super) fn end(&mut self, object: &LoadedObject) -> Result<()> {
        self.balance.end();
        self.read_open(object)
    }

    /// Bring the sums up to now: read the connections that are open. The programs must be attached.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub(super) fn tick(&mut self, object: &LoadedObject) -> Result<()> {
        self.drain()?;
        self.balance.tick();
        self.read_open(object)
    }

    /// The gain of each row since the last call ([`Balance::take_interval`]).
    pub fn take_interval(&mut self, since_ns: u64) -> (HashMap<ProcessKey, Row>, Folded) {
        self.balance.take_interval(since_ns)
    }

    /// Keep rows by something other than processes, too ([`Balance::group`]).
    pub fn group(&mut self, by: By) {
        self.balance.group(by);
    }

    /// The kind of the groups.
    #[must_use]
    pub fn by(&self) -> By {
        self.balance.by()
    }

    /// The gain of each group since the last call ([`Balance::take_groups`]).
    pub fn take_groups(&mut self, since_ns: u64) -> Option<Gains> {
        self.balance.take_groups(since_ns)
    }

    /// The sums so far.
    #[must_use]
    pub fn balance(&self) -> &Balance {
        &self.balance
    }

    /// The sums so far.
    pub fn balance_mut(&mut self) -> &mut Balance {
        &mut self.balance
    }

    /// The sums.
    #[must_use]
    pub fn finish(self) -> Balance {
        self.balance
    }
}

/// Let the program write the account of the open connection with this key, or the accounts of its subflows (MPTCP).
fn read_one(program: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut arguments = [0; size_of::<Flow>() + size_of::<u64>()];
    arguments[..key.len()].copy_from_slice(key);
    let mut ask = |number: u64| {
        arguments[key.len()..].copy_from_slice(&number.to_ne_bytes());
        bpf::run(program, &arguments)
    };
    for _ in 0..TRIES {
        let count = ask(COUNT_SUBFLOWS)?;
        // From the last to the first: if one is removed meanwhile, those that move down have been read.
        let mut numbers = (0..u64::from(count.min(SUBFLOWS))).rev();
        if numbers.try_fold(true, |whole, number| Ok::<_, io::Error>(whole && ask(number)? == 0))? {
            return Ok(());
        }
    }
    Err(io::Error::other("the subflows of a connection of MPTCP change all the time"))
}
