//! The kernel's own counters of TCP, for each network namespace. Safe code.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::netns;

/// Counters of one network namespace since its creation (Documentation/networking/snmp_counter.rst). The counters only
/// grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// RetransSegs: segments whose retransmission was begun. A SYN-ACK counts only if it was sent.
    pub retrans_segs: u64,
    /// TCPRetransFail: retransmissions that then failed; counted in segments since 5.1 (`__tcp_retransmit_skb`).
    pub retrans_fail: u64,
    /// TCPFastRetrans: segments retransmitted outside the state Loss (`tcp_xmit_retransmit_queue`).
    pub fast: u64,
    /// TCPSlowStartRetrans: segments retransmitted by ACKs in the state Loss (`tcp_xmit_retransmit_queue`).
    pub slow_start: u64,
    /// TCPSynRetrans: retransmitted SYNs, counted before they are sent, and retransmitted SYN-ACKs, counted after.
    pub syn: u64,
    /// TCPLossProbes: tail loss probes that were sent, with old or with new data.
    pub loss_probes: u64,
    /// TCPSackRecovery and TCPRenoRecovery: how often acknowledgements showed a loss (`tcp_enter_recovery`).
    pub recoveries: u64,
    /// TCPTimeouts: how often retransmission timers expired, those of SYN-ACKs too (`tcp_retransmit_timer`,
    /// `tcp_syn_ack_timeout`).
    pub timeouts: u64,
    /// TCPAbortOnTimeout and TCPAbortOnMemory: connections that a timer ended (`tcp_write_err`, `tcp_out_of_resources`).
    pub aborts: u64,
    /// TCPFastOpenActiveFail: connections whose SYN carried data that the peer did not take.
    pub fast_open_fail: u64,
    /// The counters for the ledger; none if this kernel lacks one of them.
    pub ledger: Option<OfLedger>,
    /// Inode number of the namespace's rtnetlink socket. The socket's number distinguishes the namespace from others of
    /// the same number.
    pub rtnl: u32,
}

/// The counters that the sums of all connections are compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OfLedger {
    /// TCPDelivered: segments that an ACK told to have arrived (`tcp_newly_delivered`).
    pub delivered: u64,
    /// TCPDeliveredCE: of these, segments acknowledged with ECE.
    pub delivered_ce: u64,
    /// PassiveOpens: connections that were made from requests (`tcp_create_openreq_child`).
    pub passive_opens: u64,
    /// EstabResets: connections that went to CLOSE from ESTABLISHED or CLOSE_WAIT (`tcp_set_state`).
    pub estab_resets: u64,
    /// TCPAbortOnTimeout: connections that a timer ended (`tcp_write_err`).
    pub aborts_on_timeout: u64,
    /// TCPDSACKRecvSegs: segments that the peer had twice, if the kernel believes the peer (`tcp_dsack_seen`).
    pub dsack_segs: u64,
    /// TCPSACKReorder, TCPTSReorder and TCPRenoReorder: reorderings that the sender saw.
    pub reorderings: u64,
    /// TCPFastOpenActive: connections whose SYN carried data that the peer took.
    pub fast_open: u64,
    /// ListenDrops: connections that listeners dropped (`tcp_listendrop`).
    pub listen_drops: u64,
}

impl Counters {
    /// Parse the text of /proc/net/snmp, /proc/net/netstat and /proc/net/netlink.
    ///
    /// # Errors
    /// If a counter or the rtnetlink socket is missing.
    pub fn parse(snmp: &str, netstat: &str, netlink: &str) -> Result<Self> {
        let tcp = |name| counter(snmp, "Tcp:", name);
        let ext = |name| counter(netstat, "TcpExt:", name);
        Ok(Self {
            retrans_segs: tcp("RetransSegs")?,
            retrans_fail: ext("TCPRetransFail")?,
            fast: ext("TCPFastRetrans")?,
            slow_start: ext("TCPSlowStartRetrans")?,
            syn: ext("TCPSynRetrans")?,
            loss_probes: ext("TCPLossProbes")?,
            recoveries: ext("TCPSackRecovery")? + ext("TCPRenoRecovery")?,
            timeouts: ext("TCPTimeouts")?,
            aborts: ext("TCPAbortOnTimeout")? + ext("TCPAbortOnMemory")?,
            fast_open_fail: ext("TCPFastOpenActiveFail")?,
            ledger: OfLedger::parse(snmp, netstat).ok(),
            rtnl: rtnl(netlink)?,
        })
    }
}

impl OfLedger {
    fn parse(snmp: &str, netstat: &str) -> Result<Self> {
        let tcp = |name| counter(snmp, "Tcp:", name);
        let ext = |name| counter(netstat, "TcpExt:", name);
        Ok(Self {
            delivered: ext("TCPDelivered")?,
            delivered_ce: ext("TCPDeliveredCE")?,
            passive_opens: tcp("PassiveOpens")?,
            estab_resets: tcp("EstabResets")?,
            aborts_on_timeout: ext("TCPAbortOnTimeout")?,
            dsack_segs: ext("TCPDSACKRecvSegs")?,
            reorderings: ext("TCPSACKReorder")? + ext("TCPTSReorder")? + ext("TCPRenoReorder")?,
            fast_open: ext("TCPFastOpenActive")?,
            listen_drops: ext("ListenDrops")?,
        })
    }
}

/// The [`Counters::rtnl`] of the calling thread's network namespace.
///
/// # Errors
/// If /proc cannot be read.
pub fn own_rtnl() -> Result<u32> {
    const FILE: &str = "/proc/thread-self/net/netlink";
    rtnl(&fs::read_to_string(FILE).with_context(|| format!("cannot read {FILE}"))?)
}

/// The inode number of the kernel's own rtnetlink socket: protocol 0 and port 0 (`netlink_native_seq_show`).
fn rtnl(netlink: &str) -> Result<u32> {
    let mut sockets = netlink.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let socket = sockets.find(|fields| matches!(fields[..], [_, "0", "0", ..]));
    socket
        .and_then(|fields| fields.last()?.parse().ok())
        .context("/proc/net/netlink does not show the kernel's rtnetlink socket")
}

/// Find a counter. A group is two lines that begin with the same word: the names, then the values. Their order and
/// number differ by kernel.
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

/// The counters of a namespace, or the reason why they cannot be read.
pub type Reading = Result<Counters, String>;

/// The counters of every network namespace that [`netns::all`] finds, by inode number.
///
/// # Errors
/// If the search for namespaces fails. A namespace that cannot be read is not an error, but has an entry with the
/// reason.
pub fn read_all() -> Result<HashMap<u32, Reading>> {
    /// A thread that leads to a namespace may end before its file is read. By then another thread may lead to the
    /// namespace.
    const ROUNDS: usize = 3;
    let mut all = HashMap::new();
    for _ in 0..ROUNDS {
        let mut again = false;
        for netns in netns::all()? {
            if all.contains_key(&netns.inode) {
                continue;
            }
            let reading = match netns.read_net(read_in).map(Option::flatten) {
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

/// Read the counters in a folder. None: the folder led to another namespace meanwhile.
fn read_in(directory: &Path) -> Result<Option<Counters>> {
    let file = |name: &str| {
        let path = directory.join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let before = rtnl(&file("netlink")?)?;
    let counters = Counters::parse(&file("snmp")?, &file("netstat")?, &file("netlink")?)?;
    Ok((counters.rtnl == before).then_some(counters))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const NETLINK: &str = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
                           0000000021a3c5b7 4   0          00000000 0        0        0     2        0        8\n\
                           00000000bf6be2c5 0   1234       00000111 0        0        0     2        0        9\n\
                           000000005a7b2d5c 0   0          00000000 0        0        0     2        0        7\n";

    const SNMP: &str = "Ip: Forwarding InReceives\nIp: 1 9\nTcp: RtoAlgorithm MaxConn ActiveOpens PassiveOpens InSegs \
                        OutSegs RetransSegs\nTcp: 1 -1 2 3 4 5 60\nUdpLite: InSegs\nUdpLite: 7\n";

    #[test]
    fn counters_are_found_by_name_not_by_position() {
        let older = "TcpExt: TCPFastRetrans TCPSlowStartRetrans TCPRetransFail TCPLossProbes TCPSynRetrans \
                     TCPFastOpenActiveFail TCPSackRecovery TCPRenoRecovery TCPTimeouts TCPAbortOnTimeout TCPAbortOnMemory\nTcpExt: 1 2 3 4 5 6 70 8 9 10 11\nIpExt: TCPFastRetrans\nIpExt: 99\n";
        let newer = "TcpExt: TCPAbortOnMemory TCPAbortOnTimeout TCPTimeouts TCPRenoRecovery TCPSackRecovery TCPFastOpenActiveFail TCPSynRetrans New TCPLossProbes TCPRetransFail TCPSlowStartRetrans \
                     TCPFastRetrans\nTcpExt: 11 10 9 8 70 6 5 77 4 3 2 1\n";
        let counters = Counters::parse(SNMP, older, NETLINK).unwrap();
        assert_eq!(counters, Counters::parse(SNMP, newer, NETLINK).unwrap());
        assert_eq!((counters.retrans_segs, counters.retrans_fail, counters.loss_probes), (60, 3, 4));
        assert_eq!((counters.fast, counters.slow_start, counters.syn, counters.fast_open_fail), (1, 2, 5, 6));
        assert_eq!((counters.recoveries, counters.timeouts, counters.aborts, counters.rtnl), (78, 9, 21, 7));
    }

    #[test]
    fn counters_of_the_ledger_are_all_or_none() {
        let snmp = "Tcp: PassiveOpens EstabResets RetransSegs\nTcp: 11 12 13\n";
        let (names, values) = (
            "TCPDelivered TCPDeliveredCE TCPAbortOnTimeout TCPDSACKRecvSegs TCPSACKReorder TCPTSReorder TCPRenoReorder",
            "1 2 3 4 100 20 3",
        );
        let more = format!("TcpExt: {names} TCPFastOpenActive ListenDrops\nTcpExt: {values} 9 10\n");
        let all = OfLedger::parse(snmp, &more).unwrap();
        let expected = OfLedger {
            delivered: 1,
            delivered_ce: 2,
            passive_opens: 11,
            estab_resets: 12,
            aborts_on_timeout: 3,
            dsack_segs: 4,
            reorderings: 123,
            fast_open: 9,
            listen_drops: 10,
        };
        assert_eq!(all, expected);
        assert!(OfLedger::parse(snmp, &format!("TcpExt: {names}\nTcpExt: {values}\n")).is_err());
    }

    #[test]
    fn a_missing_counter_is_named() {
        let error = Counters::parse(SNMP, "TcpExt: TCPRetransFail\nTcpExt: 1\n", NETLINK).unwrap_err();
        assert!(error.to_string().contains("TCPFastRetrans"), "{error}");
        assert!(Counters::parse("Tcp: RetransSegs\n", "", NETLINK).is_err());
    }

    #[test]
    fn the_rtnetlink_socket_is_the_kernels() {
        assert!(rtnl("sk Eth Pid Groups\n00 0 12 0 3\n00 4 0 0 3\n").is_err());
    }

    #[test]
    fn our_own_namespace_can_be_read() {
        let own = u32::try_from(fs::metadata("/proc/self/ns/net").unwrap().ino()).unwrap();
        let counters = read_all().unwrap().remove(&own).unwrap().unwrap();
        assert_eq!(read_in(Path::new("/proc/thread-self/net")).unwrap().unwrap().rtnl, counters.rtnl);
    }
}
