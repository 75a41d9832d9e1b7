//! The kernel's own data about a network namespace: its TCP counters and its sockets.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use crate::link::Netns;
use crate::process::{PATIENCE, poll};

/// `/proc/self/net` shows the namespace of the main thread; this path shows the namespace of the reading thread.
const NET: &str = "/proc/thread-self/net";

/// The counters of TCP and MPTCP since the namespace was made.
pub struct Counters(HashMap<String, i64>);

impl Counters {
    pub fn of(ns: &Netns) -> Result<Counters> {
        let text = ns.enter(|| Ok(read("snmp")? + &read("netstat")?))?;
        let mut values = HashMap::new();
        let mut lines = text.lines();
        // each group is two lines, "Tcp: RtoAlgorithm ..." and "Tcp: 1 ..."
        while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
            let pairs = names.split_whitespace().zip(numbers.split_whitespace()).skip(1);
            if names.starts_with("Tcp") || names.starts_with("MPTcp") {
                for (name, number) in pairs.filter_map(|(name, number)| Some((name, number.parse().ok()?))) {
                    // TCP comes first: MPTCP has some of its names, too
                    values.entry(name.to_owned()).or_insert(number);
                }
            }
        }
        Ok(Counters(values))
    }

    pub fn value(&self, name: &str) -> Result<i64> {
        self.0.get(name).copied().with_context(|| format!("this kernel has no counter {name}"))
    }

    /// The growth of the counter since `earlier`.
    pub fn since(&self, earlier: &Counters, name: &str) -> Result<i64> {
        Ok(self.value(name)? - earlier.value(name)?)
    }
}

/// Waits until the kernel's counter is `by` above its value in `before`.
pub fn wait_until_grown(ns: &Netns, before: &Counters, name: &str, by: i64) -> Result<()> {
    let grown = || Counters::of(ns)?.since(before, name);
    ensure!(poll(PATIENCE, || Ok(grown()? >= by))?, "{name} grew by {} only, not by {by}", grown()?);
    Ok(())
}

/// The number of connections that wait for accept() at the listener of this port.
pub fn accept_queue(ns: &Netns, port: u16) -> Result<u32> {
    const LISTEN: &str = "0A";
    let text = ns.enter(|| Ok(read("tcp")? + &read("tcp6")?))?;
    // "local address:port", "remote", state, "tx_queue:rx_queue", in hexadecimal
    let queue = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, _, LISTEN, queues, ..] = fields[..] else { return None };
        let is_it = u16::from_str_radix(local.rsplit(':').next()?, 16) == Ok(port);
        u32::from_str_radix(queues.rsplit(':').next()?, 16).ok().filter(|_| is_it)
    };
    text.lines().find_map(queue).with_context(|| format!("nobody listens on port {port}"))
}

/// The sockets that may still send (neither listening nor in TIME_WAIT), as lines of /proc/net/tcp.
pub fn connections(ns: &Netns) -> Result<Vec<String>> {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    let text = ns.enter(|| Ok(read("tcp")? + &read("tcp6")?))?;
    let open =
        |line: &&str| line.split_whitespace().nth(3).is_some_and(|state| ![TIME_WAIT, LISTEN, "st"].contains(&state));
    Ok(text.lines().filter(open).map(|line| line.trim().chars().take(100).collect()).collect())
}

/// The sockets that wait for an acknowledgement, or have data to send, as lines of /proc/net/tcp.
pub fn unacknowledged(ns: &Netns) -> Result<Vec<String>> {
    let mut lines = connections(ns)?;
    // "tx_queue:rx_queue", each in hexadecimal
    lines.retain(|line| line.split_whitespace().nth(4).is_some_and(|queues| !queues.starts_with("00000000:")));
    Ok(lines)
}

/// The number of IPv4 connections that wait for the answer to a retransmitted SYN.
pub fn retransmitting_syns(ns: &Netns) -> Result<usize> {
    const SYN_SENT: &str = "02";
    let text = ns.enter(|| read("tcp"))?;
    let retransmits = |line: &str| {
        let mut fields = line.split_whitespace().skip(3);
        let is_connecting = fields.next() == Some(SYN_SENT);
        u32::from_str_radix(fields.nth(2)?, 16).ok().filter(|_| is_connecting)
    };
    Ok(text.lines().filter_map(retransmits).filter(|retransmits| *retransmits > 0).count())
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(format!("{NET}/{file}")).with_context(|| format!("reading {NET}/{file}"))
}
