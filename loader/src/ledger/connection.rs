//! A connection that ended, and what it counted for the process that owned it at the end.

use super::row::Row;
use crate::model::events::{Flow, Owner};
use crate::model::reading::Account;

/// The end of a connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The time of the end, ns of CLOCK_MONOTONIC.
    pub mono_ns: u64,
    /// The state before the end, by number (include/net/tcp_states.h).
    pub state: u8,
    /// Why it ended, as an errno; 0: it was closed.
    pub err: u32,
    /// The four-tuple.
    pub flow: Flow,
    /// The owner at the end.
    pub owner: Owner,
    /// The counters since the owner took the connection, or since the ledger began.
    pub row: Row,
}

impl Connection {
    pub(super) fn new(account: &Account, row: Row) -> Self {
        let Account { mono_ns, state, err, flow, owner, .. } = *account;
        Self { mono_ns, state, err, flow, owner, row }
    }
}
