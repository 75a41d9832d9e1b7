//! A list of sockets: as text, and as JSON lines.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::json::{FlowFields, HoldersFields, SCHEMA, name_of};
use super::line::Line;
use super::names::{NETNS, name, netns, pid};
use super::stats::Stats;
use super::width::{fitted, padded, width};
use crate::model::events::{Owner, SocketRecord, address, state_name};
use crate::trace::seed::listing::{Listed, Listing};

#[derive(Serialize)]
struct SocketLine<'a> {
    r#type: &'static str,
    state: Cow<'static, str>,
    #[serde(flatten)]
    flow: FlowFields<'a>,
    pid: Option<u32>,
    comm: Option<Cow<'a, str>>,
    uid: Option<u32>,
    owner: &'static str,
    #[serde(flatten)]
    holders: Option<HoldersFields<'a>>,
    #[serde(flatten)]
    stats: Option<Stats>,
}

#[derive(Serialize)]
struct SocketsLine {
    r#type: &'static str,
    schema: u32,
    version: &'static str,
    sockets: usize,
    namespaces: usize,
    unreachable: usize,
    owners: BTreeMap<&'static str, usize>,
    states: BTreeMap<Cow<'static, str>, usize>,
}

/// Print one `socket` a line, and then `sockets` with the counts. The kernel has `hz` jiffies in a second. `path_of` gives the path
/// of an owner's cgroup, if that is known, and `name_of_netns` the name of a network namespace, if it has one.
///
/// # Errors
/// If the writer refuses the bytes.
pub fn json(
    out: &mut impl Write,
    listing: &Listing,
    hz: u64,
    mut path_of: impl FnMut(&Owner) -> Option<String>,
    mut name_of_netns: impl FnMut(u32) -> Option<String>,
) -> io::Result<()> {
    let (mut owners, mut states) = (BTreeMap::new(), BTreeMap::new());
    for Listed { socket: SocketRecord { flow, owner, state, .. }, reading } in &listing.sockets {
        let process = owner.is_process().then_some(owner);
        let holders = listing.holders.of(owner.holders);
        let netns_name = name_of_netns(flow.netns);
        let line = SocketLine {
            r#type: "socket",
            state: state_name(*state),
            flow: FlowFields::new(flow, netns_name.as_deref()),
            pid: process.map(|owner| owner.tgid),
            comm: name_of(owner, holders),
            uid: process.map(|owner| owner.uid),
            owner: owner.how().name(),
            holders: HoldersFields::new(owner, holders),
            stats: reading
                .as_deref()
                .map(|reading| Stats::new(owner, *state, reading, hz, process.and_then(&mut path_of))),
        };
        *owners.entry(line.owner).or_default() += 1;
        *states.entry(line.state.clone()).or_default() += 1;
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    let line = SocketsLine {
        r#type: "sockets",
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        sockets: listing.sockets.len(),
        namespaces: listing.namespaces,
        unreachable: listing.unreachable,
        owners,
        states,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

/// Print a table. Each column is as wide as its widest entry. If that is too wide for a terminal of this width, addresses are not
/// aligned, and the rest of a row begins a new line. If the sockets are of several network namespaces, a column has the name of
/// each, which `name_of` tells, or its number.
///
/// # Errors
/// If the writer refuses the bytes.
pub fn text(
    out: &mut impl Write,
    listing: &Listing,
    terminal: Option<usize>,
    mut name_of: impl FnMut(u32) -> Option<String>,
) -> io::Result<()> {
    /// The width of the columns before the addresses, without names.
    const BEFORE: usize = 22;
    /// The least width of names.
    const NAMES: usize = 15;
    /// The width of the longest kind of owner.
    const OWNER: usize = 7;
    /// The column of what begins a new line.
    const BELOW: usize = 8;
    let sockets = || listing.sockets.iter().map(|listed| &listed.socket);
    let rows: Vec<_> = sockets().map(addresses).collect();
    let name = |socket: &SocketRecord| name(&socket.owner, false, listing.holders.of(socket.owner.holders));
    let names = sockets().map(|socket| width(&name(socket))).max().unwrap_or(0).max(NAMES);
    let local = rows.iter().map(|(local, _)| local.len()).max().unwrap_or(0).max("LOCAL".len());
    let remote = rows.iter().map(|(_, remote)| remote.len()).max().unwrap_or(0).max("REMOTE".len());
    let several = are_of_several_netns(listing);
    let title = if several { padded("NETNS", NETNS) + " " } else { String::new() };
    let fits = |columns| BEFORE + names + local + " -> ".len() + remote + 2 + title.len() + OWNER <= columns;
    let (terminal, local, remote) = match terminal {
        Some(columns) if !fits(columns) => (terminal, 0, 0),
        _ => (None, local, remote),
    };
    let first = format!("{:>7} {:<names$} {:<12} ", "PID", "COMM", "STATE");
    let ends = format!("{:<local$} -> {:<remote$}", "LOCAL", "REMOTE");
    fitted(out, terminal, BELOW, &first, &[&ends, &format!("{title}OWNER")])?;
    let mut line = Line::default();
    for (socket, (from, to)) in sockets().zip(rows) {
        let netns = match several {
            true => netns(socket.flow.netns, name_of(socket.flow.netns).as_deref()) + " ",
            false => String::new(),
        };
        let (pid, name) = (pid(&socket.owner), padded(&name(socket), names));
        let first = format!("{pid:>7} {name} {:<12} ", state_name(socket.state));
        let ends = format!("{from:<local$} -> {to:<remote$}");
        fitted(&mut line, terminal, BELOW, &first, &[&ends, &(netns + socket.owner.how().name())])?;
        out.write_all(line.take())?;
    }
    Ok(())
}

/// Whether the sockets of a list are of several network namespaces, which a reader must tell apart.
pub(super) fn are_of_several_netns(listing: &Listing) -> bool {
    let mut all = listing.sockets.iter().map(|listed| listed.socket.flow.netns);
    let first = all.next();
    all.any(|netns| Some(netns) != first)
}

/// The addresses of both ends. The other end of a listening socket can be any address.
pub(super) fn addresses(socket: &SocketRecord) -> (String, String) {
    let mut line = Line::default();
    let mut end = |ip: IpAddr, port| match write!(line, "{}", SocketAddr::new(ip, port)) {
        Ok(()) => String::from_utf8_lossy(line.take()).into_owned(),
        Err(_) => String::new(), // never: a line takes everything
    };
    let flow = &socket.flow;
    let remote = address(flow.daddr);
    let anybody = flow.dport == 0 && remote.is_unspecified();
    let remote = if anybody { "*".into() } else { end(remote, flow.dport) };
    (end(address(flow.saddr), flow.sport), remote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::events::{Flow, How, KnownBy, Owner};
    use serde_json::Value;
    use std::net::Ipv6Addr;

    fn listing() -> Listing {
        let ip = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let flow = Flow {
            saddr: ip("::ffff:10.0.0.1"),
            daddr: ip("::ffff:0.0.0.0"),
            socket: u64::MAX,
            netns: 17,
            sport: 80,
            dport: 0,
            known_by: KnownBy::Address as u8,
            zero: [0; 7],
        };
        let listener = SocketRecord {
            flow,
            owner: Owner {
                tgid: 42,
                uid: 3,
                how: How::Seed as u8,
                comm: *b"a\x1b[2J\0\0\0\0\0\0\0\0\0\0\0",
                ..Owner::default()
            },
            state: 10,
            ..SocketRecord::default()
        };
        let orphan = SocketRecord {
            flow: Flow { saddr: ip("fd99::1"), daddr: ip("fd99::2"), dport: 9, ..flow },
            state: 200,
            ..SocketRecord::default()
        };
        Listing { sockets: vec![listener.into(), orphan.into()], namespaces: 1, unreachable: 0, ..Listing::default() }
    }

    #[test]
    fn json_has_the_contracts_fields_and_no_kernel_address() {
        let mut out = Vec::new();
        json(&mut out, &listing(), 250, |_| None, |_| None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains(&u64::MAX.to_string()) && !text.contains("\"sk\""), "{text}");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["pid"], &lines[0]["uid"], &lines[0]["netns"]), (&42.into(), &3.into(), &17.into()));
        assert_eq!((&lines[0]["state"], &lines[0]["owner"]), (&"LISTEN".into(), &"seed".into()));
        assert_eq!((&lines[0]["daddr"], &lines[1]["saddr"]), (&"0.0.0.0".into(), &"fd99::1".into()));
        for field in ["pid", "comm", "uid"] {
            assert_eq!(lines[1][field], Value::Null, "{field}");
        }
        assert_eq!((&lines[2]["type"], &lines[2]["sockets"]), (&"sockets".into(), &2.into()));
        assert_eq!((&lines[2]["owners"]["unknown"], &lines[2]["states"]["200"]), (&1.into(), &1.into()));
    }

    #[test]
    fn a_table_is_aligned_and_cannot_steer_a_terminal() {
        let mut out = Vec::new();
        text(&mut out, &listing(), None, |_| None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains('\x1b'), "{text:?}");
        let arrows: Vec<_> = text.lines().map(|line| line.find(" -> ")).collect();
        assert!(arrows.len() == 3 && arrows.iter().all(|at| *at == arrows[0]), "{text}");
        let mut out = Vec::new();
        super::text(&mut out, &listing(), Some(60), |_| None).unwrap();
        let narrow = String::from_utf8(out).unwrap();
        assert!(
            narrow.lines().all(|line| line.len() <= 60) && narrow.contains("\n        [fd99::1]:80 -> "),
            "{narrow}"
        );
        assert!(text.contains("10.0.0.1:80") && text.contains("-> * ") && text.contains("[fd99::2]:9"), "{text}");
    }
}
