//! `SOCKET_TO_PID` of an xctl that runs, as bpftool reads it: an independent reader of the same kernel object.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::host::tool;

/// The socket of an entry that is of none any more, and could not be removed.
const NO_SOCKET: u64 = u64::MAX;

/// What the map says of a socket. A listener has no four-tuple there: ports and namespace are 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    pub netns: u64,
    pub sport: u16,
    pub dport: u16,
    pub pid: u32,
}

#[derive(Deserialize)]
struct Map {
    id: u32,
    name: String,
}

#[derive(Deserialize)]
struct Element {
    /// Bytes; of an entry that was removed while it was read, an object that says so.
    value: serde_json::Value,
    formatted: Option<Formatted>,
}

#[derive(Deserialize)]
struct Formatted {
    key: Key,
    value: Value,
}

#[derive(Deserialize)]
struct Key {
    netns: u64,
    sport: u16,
    dport: u16,
}

#[derive(Deserialize)]
struct Value {
    tgid: u32,
    sk: u64,
}

/// Every entry of the map that this process holds, sorted.
pub fn entries(pid: u32) -> Result<Vec<Entry>> {
    let mut entries: Vec<_> = elements(pid)?.iter().map(entry).collect();
    entries.sort_unstable();
    Ok(entries)
}

/// Those of them that name one of these processes.
pub fn entries_of(pid: u32, owners: &[u32]) -> Result<Vec<Entry>> {
    Ok(entries(pid)?.into_iter().filter(|entry| owners.contains(&entry.pid)).collect())
}

/// Addresses of the sockets that are known as this process's.
pub fn sockets_of(pid: u32, owner: u32) -> Result<BTreeSet<u64>> {
    let of_owner = elements(pid)?.into_iter().map(|element| element.value).filter(|value| value.tgid == owner);
    Ok(of_owner.map(|value| value.sk).filter(|sk| *sk != NO_SOCKET).collect())
}

/// Those of them that are of no socket any more, and could not be removed.
pub fn dead(pid: u32) -> Result<Vec<Entry>> {
    Ok(elements(pid)?.iter().filter(|element| element.value.sk == NO_SOCKET).map(entry).collect())
}

fn entry(Formatted { key, value }: &Formatted) -> Entry {
    Entry { netns: key.netns, sport: key.sport, dport: key.dport, pid: value.tgid }
}

fn elements(pid: u32) -> Result<Vec<Formatted>> {
    let held = held(pid, "map_id:")?;
    let maps: Vec<Map> = bpftool(&["map", "show"])?;
    let mut found = maps.iter().filter(|map| map.name == "SOCKET_TO_PID" && held.contains(&map.id));
    let id = found.next().with_context(|| format!("process {pid} holds no SOCKET_TO_PID"))?.id.to_string();
    let elements: Vec<Element> = bpftool(&["map", "dump", "id", &id])?;
    let there = elements.into_iter().filter(|element| !element.value.is_object());
    there.map(|element| element.formatted.context("bpftool does not tell what an entry means")).collect()
}

/// The ids of the BPF objects that a process has descriptors of, of the kind that fdinfo calls by this word.
pub fn held(pid: u32, word: &str) -> Result<BTreeSet<u32>> {
    let mut held = BTreeSet::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).context("listing xctl's descriptors")?.flatten() {
        let text = std::fs::read_to_string(fd.path()).unwrap_or_default();
        held.extend(text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse::<u32>().ok()));
    }
    Ok(held)
}

pub fn bpftool<T: serde::de::DeserializeOwned>(args: &[&str]) -> Result<T> {
    let output = tool("bpftool").arg("-j").args(args).output().context("starting bpftool")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "bpftool {args:?}: {said}");
    serde_json::from_str(&said)
        .with_context(|| format!("bpftool {args:?} said {}", said.chars().take(300).collect::<String>()))
}
