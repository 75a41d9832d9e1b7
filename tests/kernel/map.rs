//! `SOCKET_TO_PID` of a running xctl, read by bpftool: an independent reader of the same kernel object.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::host::tool;
use crate::workers::Flow;

/// The socket address in a dead entry: its socket has ended, and the entry could not be removed.
const NO_SOCKET: u64 = u64::MAX;

/// An entry of the map. A listener has no four-tuple in the map: ports and namespace are 0.
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
    /// An array of bytes.
    key: Vec<String>,
    /// An array of bytes. For an entry that was removed while bpftool read it, an object that says so.
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
    /// The address of the entry's socket, if the programs made the entry or adopted it.
    socket: u64,
}

/// Every entry of the map that this process holds, sorted.
pub fn entries(pid: u32) -> Result<Vec<Entry>> {
    let mut entries: Vec<_> = elements(pid)?.iter().map(entry).collect();
    entries.sort_unstable();
    Ok(entries)
}

/// The entries that name one of these processes.
pub fn entries_of(pid: u32, owners: &[u32]) -> Result<Vec<Entry>> {
    Ok(entries(pid)?.into_iter().filter(|entry| owners.contains(&entry.pid)).collect())
}

/// The addresses of the sockets that the map says are this process's.
pub fn sockets_of(pid: u32, owner: u32) -> Result<BTreeSet<u64>> {
    let of_owner = elements(pid)?.into_iter().map(|element| element.value).filter(|value| value.tgid == owner);
    Ok(of_owner.map(|value| value.socket).filter(|socket| *socket != NO_SOCKET).collect())
}

/// The dead entries: their sockets have ended, and the entries could not be removed.
pub fn dead(pid: u32) -> Result<Vec<Entry>> {
    Ok(elements(pid)?.iter().filter(|element| element.value.socket == NO_SOCKET).map(entry).collect())
}

fn entry(Formatted { key, value }: &Formatted) -> Entry {
    Entry { netns: key.netns, sport: key.sport, dport: key.dport, pid: value.tgid }
}

/// Writes the owner of the socket with the flow `from` into the entry of the socket with the flow `to`, as if `to` had got the
/// memory of `from`.
pub fn leave_to(pid: u32, from: Flow, to: Flow) -> Result<()> {
    let id = id(pid)?;
    let all: Vec<Element> = bpftool(&["map", "dump", "id", &id])?;
    let of = |flow: Flow| {
        let is_of = |key: &Key| (key.sport, key.dport) == (flow.local.port(), flow.remote.port());
        let mut found = all.iter().filter(|element| element.formatted.as_ref().is_some_and(|pair| is_of(&pair.key)));
        found.next().with_context(|| format!("no entry of {flow:?}"))
    };
    let bytes = |element: &Element| -> Result<Vec<String>> { Ok(serde_json::from_value(element.value.clone())?) };
    let (earlier, later) = (of(from)?, of(to)?);
    let mut value = bytes(earlier)?;
    value[..8].clone_from_slice(&bytes(later)?[..8]);
    let words = ["map", "update", "id", &id, "key"].into_iter().chain(later.key.iter().map(String::as_str));
    let words = words.chain(["value"]).chain(value.iter().map(String::as_str));
    let output = tool("bpftool").args(words).output().context("starting bpftool")?;
    ensure!(output.status.success(), "bpftool: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The id of the map that this process holds.
fn id(pid: u32) -> Result<String> {
    let held = held(pid, "map_id:")?;
    let maps: Vec<Map> = bpftool(&["map", "show"])?;
    let mut found = maps.iter().filter(|map| map.name == "SOCKET_TO_PID" && held.contains(&map.id));
    Ok(found.next().with_context(|| format!("process {pid} holds no SOCKET_TO_PID"))?.id.to_string())
}

fn elements(pid: u32) -> Result<Vec<Formatted>> {
    let elements: Vec<Element> = bpftool(&["map", "dump", "id", &id(pid)?])?;
    let there = elements.into_iter().filter(|element| !element.value.is_object());
    there.map(|element| element.formatted.context("bpftool does not tell what an entry means")).collect()
}

/// The ids of the BPF objects that a process holds by descriptors. `word` is the kind, as fdinfo names it.
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
