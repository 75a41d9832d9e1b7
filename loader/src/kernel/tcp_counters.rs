//! What the kernel counted about TCP itself, network namespace by network namespace. Safe code.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::netns;

/// Counters of one network namespace since it was made (Documentation/networking/snmp_counter.rst). All only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// RetransSegs: segments whose retransmission was begun, SYN-ACKs only if they went out.
    pub retrans_segs: u64,
    /// TCPRetransFail: those that then failed; in segments since 5.1 (`__tcp_retransmit_skb`).
    pub retrans_fail: u64,
    /// TCPFastRetrans: segments sent again outside the state Loss (`tcp_xmit_retransmit_queue`).
    pub fast: u64,
    /// TCPSlowStartRetrans: segments sent again by ACKs in the state Loss (the same).
    pub slow_start: u64,
    /// TCPSynRetrans: SYNs, counted before they are sent, and SYN-ACKs, counted after.
    pub syn: u64,
    /// TCPLossProbes: tail loss probes that went out, with old or with new data.
    pub loss_probes: u64,
    /// TCPFastOpenActiveFail: connections whose SYN carried data that the peer did not take.
    pub fast_open_fail: u64,
    /// ActiveOpens, PassiveOpens, InSegs, OutSegs: for no other purpose than to tell two namespaces apart.
    pub life: [u64; 4],
}

impl Counters {
    /// From the text of /proc/net/snmp and /proc/net/netstat.
    ///
    /// # Errors
    /// If a counter is not there.
    pub fn parse(snmp: &str, netstat: &str) -> Result<Self> {
        let tcp = |name| counter(snmp, "Tcp:", name);
        let ext = |name| counter(netstat, "TcpExt:", name);
        Ok(Self {
            retrans_segs: tcp("RetransSegs")?,
            retrans_fail: ext("TCPRetransFail")?,
            fast: ext("TCPFastRetrans")?,
            slow_start: ext("TCPSlowStartRetrans")?,
            syn: ext("TCPSynRetrans")?,
            loss_probes: ext("TCPLossProbes")?,
            fast_open_fail: ext("TCPFastOpenActiveFail")?,
            life: [tcp("ActiveOpens")?, tcp("PassiveOpens")?, tcp("InSegs")?, tcp("OutSegs")?],
        })
    }

    /// Whether these cannot be later values of the same namespace's counters.
    #[must_use]
    pub fn went_back_since(&self, earlier: &Self) -> bool {
        let all = |of: &Self| {
            let [a, b, c, d] = of.life;
            let Self { retrans_segs, retrans_fail, fast, slow_start, syn, loss_probes, fast_open_fail, .. } = *of;
            [retrans_segs, retrans_fail, fast, slow_start, syn, loss_probes, fast_open_fail, a, b, c, d]
        };
        all(self).iter().zip(all(earlier)).any(|(now, then)| *now < then)
    }
}

/// A group is two lines that begin alike: the names, then the values. Their order and number differ by kernel.
fn counter(text: &str, group: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(group));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    names
        .split_whitespace()
        .zip(values.split_whitespace())
        .find(|(known, _)| *known == name)
        .and_then(|(_, value)| value.parse().ok())
        .with_context(|| format!("this kernel does not tell its counter {name}"))
}

/// The counters of a namespace, or why they cannot be read.
pub type Reading = Result<Counters, String>;

/// The counters of every network namespace that [`netns::all`] finds, by inode number.
///
/// # Errors
/// If namespaces cannot be looked for. One that cannot be read is no error, but its own entry.
pub fn read_all() -> Result<HashMap<u32, Reading>> {
    /// A thread that leads to a namespace may end before it was asked; by then another one may lead there.
    const ROUNDS: usize = 3;
    let mut all = HashMap::new();
    for _ in 0..ROUNDS {
        let mut again = false;
        for netns in netns::all()? {
            if all.contains_key(&netns.inode) {
                continue;
            }
            let reading = match netns.read_net(read_in) {
                Ok(None) => {
                    again = true;
                    continue;
                }
                Ok(Some(counters)) => Ok(counters),
                Err(error) => Err(format!("{}: {error:#}", netns.path.display())),
            };
            all.insert(netns.inode, reading);
        }
        if !again {
            break;
        }
    }
    Ok(all)
}

fn read_in(directory: &Path) -> Result<Counters> {
    let file = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    Counters::parse(&file("snmp")?, &file("netstat")?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SNMP: &str = "Ip: Forwarding InReceives\nIp: 1 9\nTcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens InSegs \
                        OutSegs RetransSegs\nTcp: 1 -1 2 3 4 5 60\nUdpLite: InSegs\nUdpLite: 7\n";

    #[test]
    fn names_decide_and_not_places() {
        let older = "TcpExt: TCPFastRetrans TCPSlowStartRetrans TCPRetransFail TCPLossProbes TCPSynRetrans \
                     TCPFastOpenActiveFail\nTcpExt: 1 2 3 4 5 6\nIpExt: TCPFastRetrans\nIpExt: 99\n";
        let newer = "TcpExt: TCPFastOpenActiveFail TCPSynRetrans New TCPLossProbes TCPRetransFail TCPSlowStartRetrans \
                     TCPFastRetrans\nTcpExt: 6 5 77 4 3 2 1\n";
        let counters = Counters::parse(SNMP, older).unwrap();
        assert_eq!(counters, Counters::parse(SNMP, newer).unwrap());
        assert_eq!((counters.retrans_segs, counters.retrans_fail, counters.loss_probes), (60, 3, 4));
        assert_eq!((counters.fast, counters.slow_start, counters.syn, counters.fast_open_fail), (1, 2, 5, 6));
        assert_eq!(counters.life, [2, 3, 4, 5]);
    }

    #[test]
    fn a_counter_that_is_not_there_is_named() {
        let error = Counters::parse(SNMP, "TcpExt: TCPRetransFail\nTcpExt: 1\n").unwrap_err();
        assert!(error.to_string().contains("TCPFastRetrans"), "{error}");
        assert!(Counters::parse("Tcp: RetransSegs\n", "").is_err());
    }

    #[test]
    fn another_namespace_is_told_by_any_counter_that_went_back() {
        let earlier = Counters { syn: 1, life: [1, 1, 9, 9], ..Counters::default() };
        assert!(!earlier.went_back_since(&earlier));
        assert!(Counters { syn: 2, life: [1, 1, 8, 20], ..earlier }.went_back_since(&earlier));
        assert!(Counters { syn: 0, ..earlier }.went_back_since(&earlier));
    }

    #[test]
    fn our_own_namespace_can_be_read() {
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let counters = read_all().unwrap().remove(&own).unwrap().unwrap();
        assert!(!read_in(Path::new("/proc/thread-self/net")).unwrap().went_back_since(&counters));
    }
}
