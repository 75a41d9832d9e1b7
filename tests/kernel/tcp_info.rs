//! TCP_INFO, as the kernel gives it to the process that holds the connection: an independent truth about its counters.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Offset and bytes of each field of `struct tcp_info` (include/uapi/linux/tcp.h), with the name that xctl gives the same figure.
const COUNTERS: &[(&str, usize, usize)] = &[
    ("retrans", 100, 4),
    ("bytes_received", 128, 8),
    ("segs_out", 136, 4),
    ("segs_in", 140, 4),
    ("data_segs_in", 152, 4),
    ("data_segs_out", 156, 4),
    ("busy_us", 168, 8),
    ("rwnd_limited_us", 176, 8),
    ("sndbuf_limited_us", 184, 8),
    ("delivered", 192, 4),
    ("delivered_ce", 196, 4),
    ("bytes_sent", 200, 8),
    ("bytes_retrans", 208, 8),
    ("dsack_dups", 216, 4),
    ("reord_seen", 220, 4),
    ("rcv_ooopack", 224, 4),
    ("total_rto", 240, 2),
];
/// In milliseconds there.
pub const RTO_TIME: (&str, usize, usize) = ("total_rto_time_us", 244, 4);
const GAUGES: &[(&str, usize, usize)] = &[
    ("rtt.srtt_us", 68, 4),
    ("rtt.var_us", 72, 4),
    ("rtt.min_us", 148, 4),
    ("now.cwnd", 80, 4),
    ("now.ssthresh", 76, 4),
    ("now.mss", 16, 4),
    ("now.notsent_bytes", 144, 4),
    ("now.snd_wnd", 228, 4),
    ("now.rcv_wnd", 232, 4),
];
/// Indices of SO_MEMINFO (include/uapi/linux/sock_diag.h).
const RCVBUF: usize = 1;
const SNDBUF: usize = 3;
const DROPS: usize = 8;

/// What a process was told about its connection. A field that this kernel does not have is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Values that only grow.
    pub counters: BTreeMap<&'static str, u64>,
    /// Values that go up and down.
    pub gauges: BTreeMap<&'static str, u64>,
    /// The state's number.
    pub state: u64,
    /// Segments in flight.
    pub unacked: u64,
    bytes_acked: u64,
}

impl TcpInfo {
    /// Parses both structs, as hexadecimal digits.
    pub fn parse(text: &str) -> Result<TcpInfo> {
        let (info, memory) = text.split_once(' ').context("one word")?;
        let (info, memory) = (bytes(info)?, bytes(memory)?);
        let number = |bytes: &[u8], at: usize, size: usize| {
            let bytes = bytes.get(at..at + size)?;
            Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
        };
        let of = |fields: &[(&'static str, usize, usize)]| -> BTreeMap<&'static str, u64> {
            fields.iter().filter_map(|&(name, at, size)| Some((name, number(&info, at, size)?))).collect()
        };
        ensure!(cfg!(target_endian = "little") && info.len() >= 232 && memory.len() >= 36, "too short");
        let mut counters = of(COUNTERS);
        let of_memory = |index: usize| number(&memory, index * 4, 4).context("SO_MEMINFO");
        counters.insert("rcv_dropped", of_memory(DROPS)?);
        if let Some(ms) = number(&info, RTO_TIME.1, RTO_TIME.2) {
            counters.insert(RTO_TIME.0, ms * 1000);
        }
        let mut gauges = of(GAUGES);
        gauges.insert("now.rcvbuf", of_memory(RCVBUF)?);
        gauges.insert("now.sndbuf", of_memory(SNDBUF)?);
        let state = number(&info, 0, 1).context("tcpi_state")?;
        let unacked = number(&info, 24, 4).context("tcpi_unacked")?;
        Ok(TcpInfo {
            counters,
            gauges,
            state,
            unacked,
            bytes_acked: number(&info, 120, 8).context("tcpi_bytes_acked")?,
        })
    }

    /// This reading of a connection at rest, without the time in recovery if that is another than in the earlier reading: it goes on as
    /// long as no new data ends the recovery, also after the connection's end.
    pub fn at_rest(mut self, earlier: &TcpInfo) -> TcpInfo {
        if self.counters.get(RTO_TIME.0) != earlier.counters.get(RTO_TIME.0) {
            self.counters.remove(RTO_TIME.0);
        }
        self
    }

    /// Whether the time in recovery cannot be compared: see [`TcpInfo::at_rest`].
    pub fn recovers(&self) -> bool {
        self.counters.contains_key("total_rto") && !self.counters.contains_key(RTO_TIME.0)
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or_default()
    }

    /// Payload bytes that were counted as sent, are not acknowledged, and are no retransmissions, if nothing is in flight.
    pub fn refused(&self) -> u64 {
        self.counter("bytes_sent").saturating_sub(self.counter("bytes_retrans") + self.bytes_acked)
    }
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(|at| pair(at).with_context(|| format!("not hexadecimal: {digits}"))).collect()
}
