//! What a connection has counted since it was made: plain values in plain units, with the names of `tcp_info` and `ss -ti`.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use crate::model::reading::{Reading, ReadingOf};

/// The age of the last data above which no segment can be on its way through this host. On kernels that do not lock a socket
/// while it is read, [`Counters::local_bytes`] is known only then.
const SETTLED_US: u64 = 100_000;

/// Cumulative counters of a connection, or sums of several. What the kernel does not tell is none. The comments name the fields
/// of `tcp_info` that have the same value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Payload bytes, retransmissions included (`tcpi_bytes_sent`).
    pub bytes_sent: u64,
    /// Payload bytes that were retransmitted (`tcpi_bytes_retrans`).
    pub bytes_retrans: u64,
    /// Received payload bytes (`tcpi_bytes_received`).
    pub bytes_received: u64,
    /// Segments sent (`tcpi_segs_out`).
    pub segs_out: u64,
    /// Segments received (`tcpi_segs_in`).
    pub segs_in: u64,
    /// Segments sent with payload (`tcpi_data_segs_out`).
    pub data_segs_out: u64,
    /// Segments received with payload (`tcpi_data_segs_in`).
    pub data_segs_in: u64,
    /// Retransmitted segments (`tcpi_total_retrans`).
    pub retrans: u64,
    /// Segments that were marked lost, also wrongly (`tcp_sock.lost`; `tcpi_lost` is another figure).
    pub lost: u64,
    /// Segments that the peer has acknowledged (`tcpi_delivered`).
    pub delivered: u64,
    /// Of these, segments acknowledged with ECE (`tcpi_delivered_ce`).
    pub delivered_ce: u64,
    /// Segments that the peer says it had twice (`tcpi_dsack_dups`).
    pub dsack_dups: u64,
    /// The least of `dsack_dups` and `retrans` of each connection: retransmissions that were not needed. More duplicates
    /// than retransmissions come from the network (`tcp_dsack_seen()`).
    #[serde(skip)]
    pub needless: u64,
    /// Reorderings that the sender has seen (`tcpi_reord_seen`).
    pub reord_seen: u64,
    /// Segments received out of order (`tcpi_rcv_ooopack`).
    pub rcv_ooopack: u64,
    /// Segments received and thrown away (`sk_drops`; `ss -m` shows it as `d`).
    pub rcv_dropped: u64,
    /// Timeouts (`tcpi_total_rto`, 6.7 and newer).
    pub total_rto: Option<u64>,
    /// Time in recovery from timeouts (`tcpi_total_rto_time`, 6.7 and newer).
    pub total_rto_time_us: Option<u64>,
    /// Time with data to send or to be acknowledged (`tcpi_busy_time`).
    pub busy_us: u64,
    /// Of this, time in which the peer's window was full (`tcpi_rwnd_limited`).
    pub rwnd_limited_us: u64,
    /// Of this, time in which the send buffer was too small (`tcpi_sndbuf_limited`).
    pub sndbuf_limited_us: u64,
    /// Payload bytes that this host's own queue dropped. TCP sends them again later, and does not count that as a
    /// retransmission.
    #[serde(skip)]
    pub local_bytes: Option<u64>,
    /// How often this host's own receive window was shut, because the process did not read.
    #[serde(skip)]
    pub zero_windows: Option<u64>,
    /// For how long.
    #[serde(skip)]
    pub zero_window_us: Option<u64>,
    /// Connections that listeners dropped, and repeated SYNs and ACKs of requests (`sk_drops` of a listener).
    #[serde(skip)]
    pub listen_drops: u64,
}

impl Counters {
    /// The counters in a reading. The kernel has `hz` jiffies in a second.
    #[must_use]
    pub fn new(reading: &Reading, hz: u64) -> Self {
        let us = |jiffies: u32| jiffies_to_us(jiffies, hz);
        let (told, windows) = (reading.has_timeouts != 0, reading.has_windows != 0);
        let (zero_windows, zero_window_us) =
            (windows.then_some(reading.zero_windows.into()), windows.then_some(us(reading.zero_window_time)));
        if reading.of() == ReadingOf::Listener {
            let (total_rto, total_rto_time_us) = (told.then_some(0), told.then_some(0));
            let listen_drops = reading.drops.into();
            return Self { total_rto, total_rto_time_us, zero_windows, zero_window_us, listen_drops, ..Self::ZERO };
        }
        let (rwnd_limited_us, sndbuf_limited_us) = (us(reading.rwnd_limited), us(reading.sndbuf_limited));
        Self {
            bytes_sent: reading.bytes_sent,
            bytes_retrans: reading.bytes_retrans,
            bytes_received: reading.bytes_received,
            segs_out: reading.segs_out.into(),
            segs_in: reading.segs_in.into(),
            data_segs_out: reading.data_segs_out.into(),
            data_segs_in: reading.data_segs_in.into(),
            retrans: reading.total_retrans.into(),
            lost: reading.lost.into(),
            delivered: reading.delivered.into(),
            delivered_ce: reading.delivered_ce.into(),
            dsack_dups: reading.dsack_dups.into(),
            needless: reading.dsack_dups.min(reading.total_retrans).into(),
            reord_seen: reading.reord_seen.into(),
            rcv_ooopack: reading.rcv_ooopack.into(),
            rcv_dropped: reading.drops.into(),
            total_rto: told.then_some(reading.total_rto.into()),
            total_rto_time_us: told.then_some(u64::from(reading.total_rto_time) * 1000),
            busy_us: us(reading.free) + rwnd_limited_us + sndbuf_limited_us,
            rwnd_limited_us,
            sndbuf_limited_us,
            local_bytes: local_bytes(reading, hz),
            zero_windows,
            zero_window_us,
            listen_drops: 0,
        }
    }
}

/// The time of so many jiffies. `tcp_get_info()` rounds in the same way.
#[must_use]
pub fn jiffies_to_us(jiffies: u32, hz: u64) -> u64 {
    u64::from(jiffies) * (1_000_000 / hz.max(1))
}

/// `__tcp_transmit_skb()` counts in `bytes_sent` before it knows whether the queue takes the segment. A refused segment stays
/// unsent, and counts once more when it is sent. So the surplus of `bytes_sent` was refused. Acknowledged bytes include SYN and
/// FIN, which makes the result smaller by at most two.
fn local_bytes(reading: &Reading, hz: u64) -> Option<u64> {
    let settled = jiffies_to_us(reading.since_sent, hz) >= SETTLED_US;
    let on_the_way = reading.bytes_retrans + reading.bytes_acked + u64::from(reading.unacked);
    (reading.locked != 0 || settled).then(|| reading.bytes_sent.saturating_sub(on_the_way))
}

impl Counters {
    /// Nothing was counted yet. Unlike the default, nothing is unknown.
    pub const ZERO: Self = Self {
        bytes_sent: 0,
        bytes_retrans: 0,
        bytes_received: 0,
        segs_out: 0,
        segs_in: 0,
        data_segs_out: 0,
        data_segs_in: 0,
        retrans: 0,
        lost: 0,
        delivered: 0,
        delivered_ce: 0,
        dsack_dups: 0,
        needless: 0,
        reord_seen: 0,
        rcv_ooopack: 0,
        rcv_dropped: 0,
        total_rto: Some(0),
        total_rto_time_us: Some(0),
        busy_us: 0,
        rwnd_limited_us: 0,
        sndbuf_limited_us: 0,
        local_bytes: Some(0),
        zero_windows: Some(0),
        zero_window_us: Some(0),
        listen_drops: 0,
    };

    /// The growth of one connection's counters since `before`. A difference with an unknown part is unknown. A counter that was
    /// read while the socket was not locked may have been too large; then the difference is 0.
    #[must_use]
    pub fn since(&self, before: &Counters) -> Self {
        let known = |now: Option<u64>, then: Option<u64>| Some(now?.saturating_sub(then?));
        let Counters { total_rto, total_rto_time_us, local_bytes, zero_windows, zero_window_us, .. } = *before;
        Self {
            bytes_sent: self.bytes_sent.saturating_sub(before.bytes_sent),
            bytes_retrans: self.bytes_retrans.saturating_sub(before.bytes_retrans),
            bytes_received: self.bytes_received.saturating_sub(before.bytes_received),
            segs_out: growth(self.segs_out, before.segs_out),
            segs_in: growth(self.segs_in, before.segs_in),
            data_segs_out: growth(self.data_segs_out, before.data_segs_out),
            data_segs_in: growth(self.data_segs_in, before.data_segs_in),
            retrans: growth(self.retrans, before.retrans),
            lost: growth(self.lost, before.lost),
            delivered: growth(self.delivered, before.delivered),
            delivered_ce: growth(self.delivered_ce, before.delivered_ce),
            dsack_dups: growth(self.dsack_dups, before.dsack_dups),
            needless: self.needless.saturating_sub(before.needless),
            reord_seen: growth(self.reord_seen, before.reord_seen),
            rcv_ooopack: growth(self.rcv_ooopack, before.rcv_ooopack),
            rcv_dropped: growth(self.rcv_dropped, before.rcv_dropped),
            total_rto: known(self.total_rto, total_rto),
            total_rto_time_us: known(self.total_rto_time_us, total_rto_time_us),
            busy_us: self.busy_us.saturating_sub(before.busy_us),
            rwnd_limited_us: self.rwnd_limited_us.saturating_sub(before.rwnd_limited_us),
            sndbuf_limited_us: self.sndbuf_limited_us.saturating_sub(before.sndbuf_limited_us),
            local_bytes: known(self.local_bytes, local_bytes),
            zero_windows: known(self.zero_windows, zero_windows),
            zero_window_us: known(self.zero_window_us, zero_window_us),
            listen_drops: growth(self.listen_drops, before.listen_drops),
        }
    }
}

/// The growth of a counter to which the kernel gives 32 bits, so that it begins again at 0. `before` may have more bits. Less than
/// half of all values passes between two readings. So a smaller value is of an earlier reading if it is not far smaller.
fn growth(now: u64, before: u64) -> u64 {
    const HALF: u64 = 1 << 31;
    let before = before & (2 * HALF - 1);
    match now.checked_sub(before) {
        Some(growth) => growth,
        None if before - now > HALF => now + 2 * HALF - before,
        None => 0,
    }
}

impl AddAssign<&Counters> for Counters {
    /// Add the counters of another connection. A sum with an unknown part is unknown.
    fn add_assign(&mut self, more: &Counters) {
        let both = |one: Option<u64>, other: Option<u64>| Some(one? + other?);
        *self = Self {
            bytes_sent: self.bytes_sent + more.bytes_sent,
            bytes_retrans: self.bytes_retrans + more.bytes_retrans,
            bytes_received: self.bytes_received + more.bytes_received,
            segs_out: self.segs_out + more.segs_out,
            segs_in: self.segs_in + more.segs_in,
            data_segs_out: self.data_segs_out + more.data_segs_out,
            data_segs_in: self.data_segs_in + more.data_segs_in,
            retrans: self.retrans + more.retrans,
            lost: self.lost + more.lost,
            delivered: self.delivered + more.delivered,
            delivered_ce: self.delivered_ce + more.delivered_ce,
            dsack_dups: self.dsack_dups + more.dsack_dups,
            needless: self.needless + more.needless,
            reord_seen: self.reord_seen + more.reord_seen,
            rcv_ooopack: self.rcv_ooopack + more.rcv_ooopack,
            rcv_dropped: self.rcv_dropped + more.rcv_dropped,
            total_rto: both(self.total_rto, more.total_rto),
            total_rto_time_us: both(self.total_rto_time_us, more.total_rto_time_us),
            busy_us: self.busy_us + more.busy_us,
            rwnd_limited_us: self.rwnd_limited_us + more.rwnd_limited_us,
            sndbuf_limited_us: self.sndbuf_limited_us + more.sndbuf_limited_us,
            local_bytes: both(self.local_bytes, more.local_bytes),
            zero_windows: both(self.zero_windows, more.zero_windows),
            zero_window_us: both(self.zero_window_us, more.zero_window_us),
            listen_drops: self.listen_drops + more.listen_drops,
        };
    }
}

/// Round-trip times of a connection, in microseconds; none: not measured yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtt {
    /// Smoothed (`tcpi_rtt`).
    pub srtt_us: Option<u64>,
    /// The least of the last five minutes (`tcpi_min_rtt`).
    pub min_us: Option<u64>,
    /// Mean deviation (`tcpi_rttvar`).
    pub var_us: Option<u64>,
}

impl Rtt {
    /// The round-trip times in a reading.
    #[must_use]
    pub fn new(reading: &Reading) -> Self {
        let measured = reading.srtt_us != 0;
        Self {
            srtt_us: measured.then_some((reading.srtt_us >> 3).into()),
            min_us: (reading.min_rtt_us != u32::MAX && measured).then_some(reading.min_rtt_us.into()),
            var_us: measured.then_some((reading.mdev_us >> 2).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection at rest: 1000 bytes sent, of which 100 twice; SYN and FIN are acknowledged too.
    fn at_rest() -> Reading {
        Reading { bytes_sent: 1100, bytes_retrans: 100, bytes_acked: 1002, locked: 1, ..Reading::default() }
    }

    #[test]
    fn units_are_those_of_tcp_info() {
        let reading = Reading {
            free: 3,
            rwnd_limited: 2,
            sndbuf_limited: 1,
            srtt_us: 8001,
            mdev_us: 403,
            min_rtt_us: 999,
            total_rto_time: 7,
            has_timeouts: 1,
            ..at_rest()
        };
        let counters = Counters::new(&reading, 250);
        assert_eq!((counters.busy_us, counters.rwnd_limited_us, counters.sndbuf_limited_us), (24_000, 8_000, 4_000));
        assert_eq!((counters.total_rto, counters.total_rto_time_us), (Some(0), Some(7_000)));
        assert_eq!(Rtt::new(&reading), Rtt { srtt_us: Some(1000), min_us: Some(999), var_us: Some(100) });
        assert_eq!(jiffies_to_us(1, 300), 3333);
    }

    #[test]
    fn a_listener_counts_what_it_drops_and_nothing_else() {
        let of = ReadingOf::Listener as u8;
        let reading = Reading { of, drops: 7, has_timeouts: 1, has_windows: 1, ..Reading::default() };
        assert_eq!(Counters::new(&reading, 250), Counters { listen_drops: 7, ..Counters::ZERO });
        let counters = Counters::new(&Reading { of, ..Reading::default() }, 250);
        assert_eq!((counters.total_rto, counters.zero_windows, counters.local_bytes), (None, None, Some(0)));
        let connection = Reading { drops: 7, ..at_rest() };
        assert_eq!(Counters::new(&connection, 250).listen_drops, 0);
    }

    #[test]
    fn what_is_not_measured_or_not_counted_is_none() {
        let counters = Counters::new(&at_rest(), 250);
        assert_eq!((counters.total_rto, counters.total_rto_time_us), (None, None));
        assert_eq!(Rtt::new(&Reading { min_rtt_us: u32::MAX, ..at_rest() }), Rtt::default());
        let new = Reading { min_rtt_us: u32::MAX, srtt_us: 8, ..at_rest() };
        assert_eq!(Rtt::new(&new), Rtt { srtt_us: Some(1), min_us: None, var_us: Some(0) });
    }

    #[test]
    fn bytes_that_are_neither_acknowledged_nor_on_the_way_were_dropped_here() {
        let local = |reading: &Reading| Counters::new(reading, 250).local_bytes;
        assert_eq!(local(&at_rest()), Some(0));
        assert_eq!(local(&Reading { bytes_sent: 2100, unacked: 300, ..at_rest() }), Some(698));
        // An unlocked socket may be sending this very moment.
        let unlocked = Reading { locked: 0, since_sent: 24, ..at_rest() };
        assert_eq!(local(&unlocked), None);
        assert_eq!(local(&Reading { since_sent: 25, ..unlocked }), Some(0));
    }

    #[test]
    fn a_difference_keeps_what_is_unknown_and_is_never_negative() {
        let before = Counters { bytes_sent: 9, retrans: 2, total_rto: Some(3), ..Counters::ZERO };
        let now = Counters { bytes_sent: 12, retrans: 1, total_rto: Some(4), local_bytes: None, ..Counters::ZERO };
        let difference = Counters { bytes_sent: 3, total_rto: Some(1), local_bytes: None, ..Counters::ZERO };
        assert_eq!(now.since(&before), difference);
        assert_eq!(now.since(&Counters::ZERO), now);
    }

    #[test]
    fn a_counter_of_32_bits_that_begins_again_goes_on() {
        let (high, all) = (u64::from(u32::MAX) - 4, 1 << 32);
        for (now, before, grown) in [
            (high, 0, high),
            (10, high, 15),
            (20, all + 10, 10),
            (9, all + 10, 0),
            (high, all + 10, high - 10),
            (5, 3 * all + high, 10),
        ] {
            assert_eq!(growth(now, before), grown, "{now} after {before}");
        }
        let (before, now) =
            (Counters { delivered: high, ..Counters::ZERO }, Counters { delivered: 3, ..Counters::ZERO });
        assert_eq!(now.since(&before).delivered, 8);
    }

    #[test]
    fn sums_keep_what_is_unknown_and_duplicates_of_one_connection_excuse_no_other() {
        let one = Counters { dsack_dups: 9, retrans: 2, needless: 2, total_rto: Some(1), ..Counters::default() };
        let other = Counters { retrans: 5, bytes_sent: 7, ..Counters::default() };
        let mut sum = one;
        sum += &one;
        assert_eq!((sum.total_rto, sum.retrans), (Some(2), 4));
        sum += &other;
        assert_eq!((sum.total_rto, sum.retrans, sum.dsack_dups, sum.needless, sum.bytes_sent), (None, 9, 18, 4, 7));
    }
}
