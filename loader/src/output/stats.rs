//! The figures of a connection, and the fields of a JSON record that show them.

use serde::Serialize;

use crate::ledger::counters::{Counters, Rtt, jiffies_to_us};
use crate::ledger::figures::{Cuts, Listener, ZeroWindow};
use crate::ledger::verdict::{Check, Observed, Verdict, Word, verdict};
use crate::model::events::{How, Owner};
use crate::model::reading::{Reading, ReadingOf};

/// States in which a connection is not established yet: the kernel has not set the times of its last segments.
const CONNECTING: [u8; 2] = [2, 3];

/// The gauges of a connection, with the names of `tcp_info` and `ss -ti`.
#[derive(Serialize)]
struct Gauges {
    cwnd: u32,
    ssthresh: u32,
    mss: u32,
    snd_wnd: u32,
    rcv_wnd: u32,
    unacked_bytes: u32,
    notsent_bytes: u32,
    unread_bytes: u32,
    sndbuf: u32,
    rcvbuf: u32,
    last_sent_us: Option<u64>,
    last_received_us: Option<u64>,
    last_acked_us: Option<u64>,
}

/// The fields that `--stats` adds to a `socket` record. Those that a snapshot cannot know are null.
#[derive(Serialize)]
pub(super) struct Stats {
    kernel: bool,
    cgroup: Option<u64>,
    cgroup_path: Option<String>,
    /// A snapshot observes no time. The counters are complete: the kernel counts from a connection's beginning.
    observed_us: Option<u64>,
    complete: bool,
    age_at_least_us: Option<u64>,
    tcp: Option<Counters>,
    local_dropped_bytes: Option<u64>,
    rtt: Option<Rtt>,
    now: Option<Gauges>,
    cuts: Cuts,
    zero_window: ZeroWindow,
    listener: Option<Listener>,
    verdict: Option<Vec<Word>>,
    because: Option<Vec<Check>>,
    unknown: Option<Vec<&'static str>>,
}

/// A connection's figures in plain units.
pub(super) struct Figures {
    pub(super) counters: Counters,
    pub(super) rtt: Rtt,
    /// Microseconds since the connection last sent data, last received data, and last received an acknowledgement. None: the
    /// connection is not established yet.
    last_us: Option<[u64; 3]>,
    /// None: not established yet.
    pub(super) verdict: Option<Verdict>,
}

impl Figures {
    /// The figures of a connection; none: this is no connection that counts.
    pub(super) fn new(state: u8, reading: &Reading, hz: u64) -> Option<Self> {
        if reading.of() != ReadingOf::Connection {
            return None;
        }
        let (counters, rtt) = (Counters::new(reading, hz), Rtt::new(reading));
        let last = [reading.since_sent, reading.since_received, reading.since_acked];
        let last_us = (!CONNECTING.contains(&state)).then(|| last.map(|jiffies| jiffies_to_us(jiffies, hz)));
        // The kernel does not tell a connection's age. The connection is at least as old as its last segments.
        let observed = last_us.map(|last| Observed::AtLeast(last[0].max(last[1]).max(last[2])));
        Some(Self { counters, rtt, last_us, verdict: observed.map(|observed| verdict(&counters, rtt, observed)) })
    }
}

impl Stats {
    pub(super) fn new(owner: &Owner, state: u8, reading: &Reading, hz: u64, cgroup_path: Option<String>) -> Self {
        let figures = Figures::new(state, reading, hz);
        let last = |which: usize| Some(figures.as_ref()?.last_us?[which]);
        let verdict = figures.as_ref().and_then(|figures| figures.verdict.as_ref());
        Self {
            kernel: owner.how() == How::Kernel,
            cgroup: owner.is_process().then_some(owner.cgroup),
            cgroup_path,
            observed_us: None,
            complete: true,
            age_at_least_us: (0..3).filter_map(last).max(),
            tcp: figures.as_ref().map(|figures| figures.counters),
            local_dropped_bytes: figures.as_ref().and_then(|figures| figures.counters.local_bytes),
            rtt: figures.as_ref().map(|figures| figures.rtt),
            now: figures.as_ref().map(|_| Gauges {
                cwnd: reading.snd_cwnd,
                ssthresh: reading.snd_ssthresh,
                mss: reading.mss,
                snd_wnd: reading.snd_wnd,
                rcv_wnd: reading.rcv_wnd,
                unacked_bytes: reading.unacked,
                notsent_bytes: reading.unsent,
                unread_bytes: reading.unread,
                sndbuf: reading.sndbuf,
                rcvbuf: reading.rcvbuf,
                last_sent_us: last(0),
                last_received_us: last(1),
                last_acked_us: last(2),
            }),
            cuts: Cuts::default(),
            zero_window: ZeroWindow::default(),
            listener: (reading.of() == ReadingOf::Listener).then_some(Listener {
                dropped: reading.drops.into(),
                queue: reading.queue,
                backlog: reading.backlog,
            }),
            verdict: verdict.map(|verdict| verdict.words.clone()),
            because: verdict.map(|verdict| verdict.because().copied().collect()),
            unknown: verdict.map(|verdict| verdict.unknown().collect()),
        }
    }
}
