//! The sums of the counters of all connections, by network namespace: of those that ended, and of those that are open now.
//!
//! Connections end while the open ones are read. If a connection was read before its end, only the account of its end counts.
//! The times of the two accounts show which case it is.

use std::collections::HashMap;
use std::ops::AddAssign;

use crate::model::events::NetnsKey;
use crate::model::reading::{Account, AccountWhy};
use crate::model::tcp::error::{ECONNABORTED, ECONNRESET, EPIPE, ETIMEDOUT};
use crate::model::tcp::state::{CLOSE_WAIT, ESTABLISHED, LISTEN, NEW_SYN_RECV, SYN_RECV, SYN_SENT};

/// Errors that end a connection, and that no ICMP message leaves behind; 0: it was closed.
const ENDS: [u32; 5] = [0, EPIPE, ECONNABORTED, ECONNRESET, ETIMEDOUT];

/// Sums of connections, each over its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Retransmitted segments, and SYN-ACKs of requests that are open.
    pub retrans: i64,
    /// Of these, SYN-ACKs of requests that are open.
    pub of_requests: i64,
    /// Delivered segments. A connection in SYN_RECV, or one that ended there, counts one more: the kernel adds the SYN-ACK only
    /// when it leaves that state (`tcp_rcv_state_process()`).
    pub delivered: i64,
    /// Of these, segments acknowledged with ECE.
    pub delivered_ce: i64,
    /// Segments that the peer says it had twice.
    pub dsack_dups: i64,
    /// Reorderings that the sender has seen.
    pub reord_seen: i64,
    /// Connections that ended from ESTABLISHED or CLOSE_WAIT.
    pub resets: i64,
    /// Connections that ended with ETIMEDOUT.
    pub timed_out: i64,
    /// Connections that ended with another error, which may stand in the place of ETIMEDOUT.
    pub other_errors: i64,
    /// Connections from an address to itself.
    pub to_itself: i64,
    /// Connections that listeners dropped, and repeated SYNs and ACKs of requests.
    pub listen_drops: i64,
    /// Listeners that ended.
    pub listeners_ended: i64,
}

impl Sums {
    /// The sums of one connection, request or listener.
    #[must_use]
    pub fn of(account: &Account) -> Self {
        let reading = &account.reading;
        let retrans = i64::from(reading.total_retrans);
        if account.state == NEW_SYN_RECV {
            return Self { retrans, of_requests: retrans, ..Self::default() };
        }
        let (ended, err) = (account.why() == AccountWhy::Ended, account.err);
        if account.state == LISTEN {
            let (listen_drops, listeners_ended) = (reading.drops.into(), ended.into());
            return Self { listen_drops, listeners_ended, ..Self::default() };
        }
        // A process that asks for SO_ERROR takes the error away, perhaps before the connection ends. MPTCP and sockets of the
        // kernel do so, too.
        let told = [SYN_SENT, ESTABLISHED, CLOSE_WAIT].contains(&account.state);
        let taken = err == 0 && (told || account.mptcp != 0 || !account.owner.is_process());
        let other = taken || !ENDS.contains(&err);
        let flow = &account.flow;
        let when = |holds: bool| i64::from(holds);
        Self {
            retrans: if ended && account.lost_race() { 0 } else { retrans },
            of_requests: 0,
            delivered: i64::from(reading.delivered) + when(account.state == SYN_RECV),
            delivered_ce: reading.delivered_ce.into(),
            dsack_dups: reading.dsack_dups.into(),
            reord_seen: reading.reord_seen.into(),
            resets: when(ended && [ESTABLISHED, CLOSE_WAIT].contains(&account.state)),
            timed_out: when(ended && err == ETIMEDOUT),
            other_errors: when(ended && other),
            listen_drops: 0,
            listeners_ended: 0,
            to_itself: when((flow.saddr, flow.sport) == (flow.daddr, flow.dport)),
        }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, more: Self) {
        *self = Self {
            retrans: self.retrans + more.retrans,
            of_requests: self.of_requests + more.of_requests,
            delivered: self.delivered + more.delivered,
            delivered_ce: self.delivered_ce + more.delivered_ce,
            dsack_dups: self.dsack_dups + more.dsack_dups,
            reord_seen: self.reord_seen + more.reord_seen,
            resets: self.resets + more.resets,
            timed_out: self.timed_out + more.timed_out,
            other_errors: self.other_errors + more.other_errors,
            to_itself: self.to_itself + more.to_itself,
            listen_drops: self.listen_drops + more.listen_drops,
            listeners_ended: self.listeners_ended + more.listeners_ended,
        };
    }
}

/// The sums of connections that ended.
#[derive(Debug, Default)]
pub struct Tally {
    ended: HashMap<NetnsKey, Sums>,
    /// The latest end at each socket address since [`Tally::begin`], ns of CLOCK_MONOTONIC.
    recent: Option<HashMap<u64, u64>>,
}

/// The accounts of the connections that are open in one namespace, by socket address: the time, and the sums.
pub type Open = HashMap<u64, (u64, Sums)>;

impl Tally {
    /// Add an account, if it is of a connection that ended.
    pub fn note(&mut self, account: &Account) {
        if account.why() != AccountWhy::Ended {
            return;
        }
        let netns = NetnsKey { inum: account.flow.netns, rtnl: account.rtnl };
        *self.ended.entry(netns).or_default() += Sums::of(account);
        if let Some(recent) = &mut self.recent {
            let last = recent.entry(account.socket).or_default();
            *last = account.mono_ns.max(*last);
        }
    }

    /// The open connections are about to be read. All accounts of the time before have been noted.
    pub fn begin(&mut self) {
        self.recent = Some(HashMap::new());
    }

    /// The open connections have been added. From now on the time of each end is not kept.
    pub fn end(&mut self) {
        self.recent = None;
    }

    /// The sums of a namespace. All accounts of the time in which its open connections were read have been noted.
    #[must_use]
    pub fn with_open(&self, netns: NetnsKey, open: &Open) -> Sums {
        let mut sums = self.ended.get(&netns).copied().unwrap_or_default();
        for (socket, (read_ns, own)) in open {
            let ended = self.recent.as_ref().and_then(|recent| recent.get(socket));
            if ended.is_none_or(|ended| ended < read_ns) {
                sums += *own;
            }
        }
        sums
    }
}

/// Add an account to those of open connections. If a socket is read again, or a later one at the same address, only the last
/// reading counts.
pub fn note_open(open: &mut Open, account: &Account) {
    open.insert(account.socket, (account.mono_ns, Sums::of(account)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::events::{How, Owner};
    use crate::model::reading::Reading;

    const NETNS: NetnsKey = NetnsKey { inum: 5, rtnl: 7 };

    fn account(socket: u64, why: AccountWhy, state: u8, delivered: u32, mono_ns: u64) -> Account {
        let reading = Reading { delivered, ..Reading::default() };
        let owner = Owner { tgid: 1, how: How::Send as u8, ..Owner::default() };
        let mut account =
            Account { reading, owner, socket, state, mono_ns, why: why as u8, rtnl: NETNS.rtnl, ..Account::default() };
        (account.flow.netns, account.flow.sport) = (NETNS.inum, 1);
        account
    }

    fn open(accounts: &[Account]) -> Open {
        let mut open = Open::new();
        accounts.iter().for_each(|account| note_open(&mut open, account));
        open
    }

    #[test]
    fn a_connection_counts_once_whether_it_is_read_before_its_end_or_after() {
        use AccountWhy::{Ended, Open};
        let mut tally = Tally::default();
        tally.note(&account(1, Ended, 1, 100, 10));
        tally.begin();
        // The second ends after it was read; the third's memory is another connection's by the time it is read.
        let read = open(&[account(2, Open, 1, 5, 20), account(2, Open, 1, 6, 21), account(3, Open, 1, 7, 30)]);
        tally.note(&account(2, Ended, 1, 1000, 25));
        tally.note(&account(3, Ended, 1, 10_000, 29));
        tally.note(&account(4, AccountWhy::Taken, 1, 50, 30));
        assert_eq!(tally.with_open(NETNS, &read).delivered, 100 + 1000 + 10_000 + 7);
        assert_eq!(tally.with_open(NetnsKey { rtnl: 8, ..NETNS }, &read).delivered, 7, "of another namespace");
        tally.begin();
        assert_eq!(tally.with_open(NETNS, &open(&[account(2, Open, 1, 1, 40)])).delivered, 11_101);
    }

    #[test]
    fn a_listener_adds_only_what_it_dropped() {
        let one = |why| Account {
            reading: Reading { drops: 7, delivered: 9, ..Reading::default() },
            ..account(1, why, LISTEN, 0, 1)
        };
        let sums = Sums { listen_drops: 7, ..Sums::default() };
        assert_eq!(Sums::of(&one(AccountWhy::Open)), sums);
        assert_eq!(Sums::of(&one(AccountWhy::Ended)), Sums { listeners_ended: 1, ..sums });
    }

    #[test]
    fn only_the_right_ends_count_as_resets_and_timeouts() {
        let end = |state, err| Sums::of(&Account { err, ..account(1, AccountWhy::Ended, state, 0, 1) });
        let one = |sums: Sums| (sums.resets, sums.timed_out, sums.other_errors);
        assert_eq!(one(end(ESTABLISHED, ETIMEDOUT)), (1, 1, 0));
        assert_eq!(one(end(CLOSE_WAIT, 0)), (1, 0, 1), "the process may have taken the error");
        assert_eq!(one(end(9, 0)), (0, 0, 0), "LAST_ACK");
        assert_eq!(one(end(4, ECONNRESET)), (0, 0, 0));
        assert_eq!(one(end(2, 113)), (0, 0, 1), "EHOSTUNREACH, perhaps after a timeout");
        let subflow = Account { mptcp: 1, ..account(1, AccountWhy::Ended, ESTABLISHED, 0, 1) };
        assert_eq!(one(Sums::of(&subflow)), (1, 0, 1));
        assert_eq!(one(Sums::of(&account(1, AccountWhy::Open, ESTABLISHED, 0, 1))), (0, 0, 0));
    }

    #[test]
    fn syn_acks_count_once() {
        let with = |why, state| {
            let mut one = account(1, why, state, 0, 1);
            one.reading.total_retrans = 3;
            Sums::of(&one)
        };
        let request = with(AccountWhy::Open, NEW_SYN_RECV);
        assert_eq!((request.retrans, request.of_requests, request.delivered), (3, 3, 0));
        let race = with(AccountWhy::Ended, SYN_RECV);
        assert_eq!((race.retrans, race.delivered), (0, 1));
        let child = with(AccountWhy::Open, SYN_RECV);
        assert_eq!((child.retrans, child.of_requests, child.delivered), (3, 0, 1));
        assert_eq!(with(AccountWhy::Ended, ESTABLISHED).delivered, 0);
    }
}
