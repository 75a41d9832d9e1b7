//! Processes and addresses as text.

use std::net::SocketAddr;

use super::width::{padded, shorten};
use crate::ledger::group::{By, Group};
use crate::ledger::summary;
use crate::model::events::{Flow, How, Owner, address, comm};
use crate::trace::seed::holders::{Process, common_name};

/// A name as text without control characters, so that the name cannot play tricks on a terminal. Characters that change the
/// direction of a text or break its line, and most that show nothing, are such characters here.
pub(super) fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || plays(c) { '?' } else { c }).collect()
}

fn plays(c: char) -> bool {
    matches!(c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}' | '\u{fffd}')
}

/// The process of a row in the summary: its PID and its name, or why there is none.
pub(super) fn whose(process: &summary::Process) -> (String, String) {
    let nobody = if process.kernel { "-" } else { "?" };
    let pid = process.pid.map_or_else(|| nobody.into(), |pid| pid.to_string());
    let nobody = match process {
        process if process.kernel => How::Kernel,
        process if process.shared => How::Shared,
        _ => How::Unknown,
    };
    let comm = match process.others {
        Some(rows) => format!("({rows} others, which have exited)"),
        None => process.comm.as_deref().map_or_else(|| nobody.name().into(), printable),
    };
    (pid, comm)
}

/// The name of a row of `xctl top`, and the PID before it, if rows have one.
pub(super) fn named(row: &summary::Process, by: By) -> (Option<String>, String) {
    let has_pid = matches!(by, By::Process | By::Connection);
    if let Some(rows) = row.others {
        let name = match (by, rows) {
            (By::Process, _) => format!("({rows} exited)"),
            (_, 0) => "(more)".to_owned(),
            _ => format!("({rows} more connections)"),
        };
        return (has_pid.then(|| "?".to_owned()), name);
    }
    let name = match row.group {
        Some(Group::Remote(remote)) => address(remote).to_string(),
        Some(Group::Cgroup(id)) => match (&row.cgroup_path, id) {
            (Some(path), _) => printable(path),
            (None, 0) => "(no process or cgroup known)".to_owned(),
            (None, id) => format!("cgroup {id}"),
        },
        Some(Group::Connection(flow, _)) => {
            let (pid, comm) = whose(row);
            let remote = SocketAddr::new(address(flow.daddr), flow.dport);
            return (Some(pid), format!("{comm} :{} {remote}", flow.sport));
        }
        None => {
            let (pid, comm) = whose(row);
            return (Some(pid), comm);
        }
    };
    (None, name)
}

/// The PID of an owner, or why there is none.
pub(super) fn pid(owner: &Owner) -> String {
    match owner.how() {
        How::Unknown | How::Shared => "?".into(),
        How::Kernel => "-".into(),
        _ => owner.tgid.to_string(),
    }
}

/// The name of an owner, or why there is none.
pub(super) fn name(owner: &Owner, exited: bool, holders: &[Process]) -> String {
    match owner.how() {
        How::Unknown => "unknown".into(),
        How::Kernel => "kernel".into(),
        How::Shared => format!("shared: {}", shared_by(holders)),
        _ if exited => format!("{} (exited)", printable(&comm(&owner.comm))),
        _ => printable(&comm(&owner.comm)),
    }
}

/// The common name of all holders, or a few of their PIDs.
fn shared_by(holders: &[Process]) -> String {
    const SHOWN: usize = 2;
    if let Some(name) = common_name(holders) {
        return printable(&comm(name));
    }
    let mut pids: Vec<_> = holders.iter().take(SHOWN).map(|holder| holder.tgid.to_string()).collect();
    if holders.len() > SHOWN {
        pids.push(format!("+{}", holders.len() - SHOWN));
    }
    pids.join(",")
}

/// The columns of a network namespace.
pub(super) const NETNS: usize = 16;

/// A network namespace, by its name for `ip netns` or its number, in its columns.
pub(super) fn netns(inum: u32, name: Option<&str>) -> String {
    let text = name.map_or_else(|| inum.to_string(), printable);
    padded(&shorten(&text, NETNS), NETNS)
}

/// Both ends of a connection.
pub(super) fn addresses(flow: &Flow) -> String {
    let end = |bytes, port| SocketAddr::new(address(bytes), port);
    format!("{} -> {}", end(flow.saddr, flow.sport), end(flow.daddr, flow.dport))
}

/// The local port and the other end of a connection.
pub(super) fn from_port(flow: &Flow) -> String {
    format!(":{} -> {}", flow.sport, SocketAddr::new(address(flow.daddr), flow.dport))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_steer_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{fffd}\u{202e}c"), "a?[2Jb??c");
    }
}
