//! Seeding in user space, for kernels without an iterator over open files (before 5.8). `/proc/PID/fd` tells which process
//! holds which socket, by inode number. `/proc/net/tcp` of each network namespace tells which connection has that inode
//! number.
//!
//! The programs key listeners by kernel address. If two sockets have the same four-tuple, the programs key the second one by
//! kernel address too. /proc does not tell that address: here the inode number takes its place.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bpf_object::sort;
use nix::errno::Errno;

use super::holders::{Holders, Seeded};
use crate::kernel::map::Map;
use crate::kernel::netns::Netns;
use crate::kernel::{cgroup, host, netns};
use crate::model::events::{COMM_LEN, Flow, Holder, How, KnownBy, Owner, Plain};
use crate::model::tcp::state::LISTEN;

/// Remember every connection that a process holds. Entries that the programs made meanwhile are newer, and stay unchanged.
///
/// `wanted` has the ids of the cgroups that the user asked for, and zeros. `progress` is told how many connections have entries so far.
///
/// # Errors
/// If /proc cannot be read, or the map cannot be written.
pub fn seed(map: &Map<impl AsFd>, wanted: &[u64], progress: &mut dyn FnMut(usize)) -> Result<Seeded> {
    let known_by = KnownBy::Inode as u8;
    let (holders, started, closed_processes) = holders()?;
    let mut seeded = Seeded { closed_processes, ..Seeded::default() };
    let (mut owners, mut inserted, mut shared) = (HashMap::new(), Vec::new(), Vec::new());
    for netns in netns::all()? {
        let Some(connections) = connections(&netns)? else {
            seeded.closed_namespaces += 1;
            continue;
        };
        let mut flows = HashSet::new();
        let twins: HashSet<Flow> = connections.iter().map(|one| one.flow).filter(|flow| !flows.insert(*flow)).collect();
        for mut connection in connections {
            let inode = connection.inode;
            let Some(tgids) = holders.get(&inode) else { continue };
            let mut describe = |tgid| *owners.entry(tgid).or_insert_with(|| describe(tgid, wanted));
            // A process that has exited no longer holds the socket; another process may have its PID now.
            let is_the_same = |owner: &Owner| started.get(&owner.tgid) == Some(&owner.born);
            let described: Vec<Owner> = tgids.iter().filter_map(|&tgid| describe(tgid)).filter(is_the_same).collect();
            let owner = match described[..] {
                [] => continue,
                [owner] => Owner { socket: inode, ..owner },
                _ => Owner { socket: inode, known_by, holders: inode, how: How::Shared as u8, ..Owner::default() },
            };
            let owner = bytes(&owner);
            if described.len() > 1 {
                let holder =
                    |owner: &Owner| Holder { socket: inode, tgid: owner.tgid, comm: owner.comm, ..Holder::default() };
                shared.extend(described.iter().map(holder));
            }
            let mut result = map.insert(&bytes(&connection.flow), &owner);
            // A hook may already have replaced the inode number by the socket's address. Then the entry may belong to
            // either of the two sockets with this four-tuple.
            let is_other = |flow: &Flow| match seeded_inode(map, flow) {
                Some(other) => other != inode,
                None => twins.contains(flow),
            };
            if let Ok(false) = result
                && is_other(&connection.flow)
            {
                connection.flow = by_inode(inode);
                result = map.insert(&bytes(&connection.flow), &owner);
            }
            match result {
                Ok(true) => {
                    inserted.push((netns.clone(), connection));
                    progress(inserted.len());
                }
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => seeded.no_room += 1,
                Err(error) => return Err(error).context("cannot write to the map SOCKET_TO_PID"),
            }
        }
    }
    seeded.holders = Holders::new(shared.into_iter());
    seeded.sockets = inserted.len() - forget_ended(map, &inserted)?;
    Ok(seeded)
}

/// The key of a socket whose addresses do not distinguish it from others.
fn by_inode(inode: u64) -> Flow {
    Flow { socket: inode, known_by: KnownBy::Inode as u8, ..Flow::default() }
}

/// The inode number in an entry. None: there is no entry, or the programs know the entry's socket.
fn seeded_inode(map: &Map<impl AsFd>, key: &Flow) -> Option<u64> {
    let mut value = vec![0; size_of::<Owner>()];
    map.lookup(&bytes(key), &mut value).ok()?;
    let owner = Owner::get(&value);
    (owner.known_by == KnownBy::Inode as u8).then_some(owner.socket)
}

/// Remove the entries of connections that ended before their entry was made: the programs saw the end, but found no entry to
/// remove. Returns the number of removed entries.
fn forget_ended(map: &Map<impl AsFd>, inserted: &[(Netns, Connection)]) -> Result<usize> {
    let mut open = HashSet::new();
    let mut looked_at = HashSet::new();
    for (netns, _) in inserted {
        if looked_at.insert(netns.inode) {
            let connections = connections(netns)?.unwrap_or_default();
            open.extend(connections.iter().map(|connection| (netns.inode, connection.inode)));
        }
    }
    let mut forgotten = 0;
    for (_, Connection { flow, inode }) in
        inserted.iter().filter(|(netns, connection)| !open.contains(&(netns.inode, connection.inode)))
    {
        // An entry with a socket belongs to the programs by now.
        if seeded_inode(map, flow) == Some(*inode) {
            map.remove(&bytes(flow)).context("cannot remove from the map SOCKET_TO_PID")?;
            forgotten += 1;
        }
    }
    Ok(forgotten)
}

fn bytes<T: Plain>(value: &T) -> Vec<u8> {
    let mut bytes = vec![0; size_of::<T>()];
    value.put(&mut bytes);
    bytes
}

/// The PIDs of the processes that hold an open socket of any protocol, by the socket's inode number.
type Holding = HashMap<u64, Vec<u32>>;
/// The start time of each process, as in [`Owner::born`], by PID.
type Starts = HashMap<u32, u64>;

/// The holders of each socket; the start time of each process; and the number of processes whose files xctl may not see.
fn holders() -> Result<(Holding, Starts, usize)> {
    let processes = fs::read_dir("/proc").context("cannot read /proc")?.flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    sort::ascending(&mut pids);
    let (mut holders, mut started, mut closed) = (Holding::new(), Starts::new(), 0);
    for pid in pids {
        let Some(born) = host::started_for_good(pid) else { continue };
        started.insert(pid, born);
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut is_closed = fds.as_ref().is_err_and(denied);
        for fd in fds.into_iter().flatten().flatten() {
            let target = fs::read_link(fd.path());
            // xctl may be allowed to list a process's descriptors, but not to read their links.
            is_closed |= target.as_ref().is_err_and(denied);
            let inode = target
                .ok()
                .as_deref()
                .and_then(Path::to_str)
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                let of_socket = holders.entry(inode).or_default();
                if of_socket.last() != Some(&pid) {
                    of_socket.push(pid);
                }
            }
        }
        closed += usize::from(is_closed);
    }
    Ok((holders, started, closed))
}

/// A line of /proc/net/tcp: a socket with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    /// The key of the socket's entry.
    flow: Flow,
    /// The inode number of the socket's file.
    inode: u64,
}

/// The connections of a network namespace. An empty list if the namespace is gone; `None` if xctl may not enter it.
fn connections(netns: &Netns) -> Result<Option<Vec<Connection>>> {
    let read = |folder: &Path, name: &str| match fs::read_to_string(folder.join(name)) {
        // A host without IPv6 has no tcp6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("cannot read /proc/net/{name} of network namespace {}", netns.inode)),
    };
    let text = match netns.read_net(|folder| Ok(read(folder, "tcp")? + &read(folder, "tcp6")?)) {
        Err(error) if error.downcast_ref() == Some(&Errno::EPERM) => return Ok(None),
        text => text?.unwrap_or_default(),
    };
    Ok(Some(text.lines().filter_map(|line| connection(line, netns.inode)).collect()))
}

/// Parse a line (net/ipv4/tcp_ipv4.c, get_tcp4_sock): number, local and remote address, state, and the inode as the tenth
/// field. Neither the headings nor sockets without a file are connections.
fn connection(line: &str, netns: u32) -> Option<Connection> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let inode = fields.nth(5)?.parse().ok()?;
    if inode == 0 {
        return None;
    }
    if u8::from_str_radix(state, 16).ok()? == LISTEN {
        return Some(Connection { flow: by_inode(inode), inode });
    }
    let ((saddr, sport), (daddr, dport)) = (endpoint(local)?, endpoint(remote)?);
    Some(Connection { flow: Flow { saddr, daddr, netns, sport, dport, ..Flow::default() }, inode })
}

/// `0100007F:1F90`: an address as one or four 32-bit words, each printed as the number that this machine sees in it, and
/// a port.
fn endpoint(text: &str) -> Option<([u8; 16], u16)> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let mut bytes = [0; 16];
    match address.len() {
        8 => bytes = std::net::Ipv4Addr::from(word(0)?).to_ipv6_mapped().octets(),
        32 => {
            for (at, to) in bytes.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(at * 8)?);
            }
        }
        _ => return None,
    }
    Some((Ipv6Addr::from(bytes).octets(), u16::from_str_radix(port, 16).ok()?))
}

/// A process, described as `describe()` in owner_process.bpf.h does; none if the process is gone.
fn describe(tgid: u32, wanted: &[u64]) -> Option<Owner> {
    let read = |name: &str| fs::read(format!("/proc/{tgid}/{name}")).ok();
    let status = String::from_utf8_lossy(&read("status")?).into_owned();
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()?;
    let name = read("comm")?;
    let name = name.strip_suffix(b"\n").unwrap_or(&name);
    let mut comm = [0; COMM_LEN];
    let length = name.len().min(COMM_LEN - 1);
    comm[..length].copy_from_slice(&name[..length]);
    let cgroups = cgroups(&String::from_utf8_lossy(&read("cgroup").unwrap_or_default()));
    Some(Owner {
        // The start time is read last: it tells whether all values came from one process.
        born: host::started(tgid).ok()??,
        cgroup: cgroups.first().copied().unwrap_or(0),
        tgid,
        tid: tgid,
        uid,
        how: How::Seed as u8,
        known_by: KnownBy::Inode as u8,
        in_cgroup: u8::from(cgroups.iter().any(|cgroup| wanted.contains(cgroup))),
        comm,
        ..Owner::default()
    })
}

/// Ids of a process's cgroup (v2) and of the cgroups above it, from the text of /proc/PID/cgroup.
fn cgroups(text: &str) -> Vec<u64> {
    const ROOT: &str = "/sys/fs/cgroup";
    // A cgroup outside xctl's cgroup namespace has a path from there on, such as `/../podY`, and is not known here.
    let Some(path) = cgroup::path_in(text).filter(|path| !path.starts_with("/..")) else { return Vec::new() };
    let full = PathBuf::from(format!("{ROOT}{path}"));
    let own = full.ancestors().take_while(|path| path.starts_with(ROOT));
    own.filter_map(|path| fs::metadata(path).ok()).map(|about| about.ino()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn listeners_are_found_by_their_file_and_connections_by_their_line() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let line = |local: &str, remote: &str, state: &str, inode: u32| {
            format!(
                "   1: {local}:1F90 {remote}:01BB {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 x 20"
            )
        };
        let (home, away) = (word([127, 0, 0, 1]), word([10, 9, 8, 7]));
        let found = connection(&line(&home, &away, "01", 77), 5).unwrap();
        assert_eq!((found.inode, found.flow.netns, found.flow.socket), (77, 5, 0));
        assert_eq!((found.flow.sport, found.flow.dport), (8080, 443));
        assert_eq!(crate::model::events::address(found.flow.daddr).to_string(), "10.9.8.7");
        assert_eq!(connection(&line(&home, &away, "0A", 77), 5), Some(Connection { flow: by_inode(77), inode: 77 }));
        assert_eq!(connection(&line(&home, &away, "06", 0), 5), None);
        let v6 = [word([0xfd, 0x99, 0, 0]), word([0; 4]), word([0; 4]), word([0, 0, 0, 2])].concat();
        let found = connection(&line(&v6, &v6, "08", 1), 5).unwrap();
        assert_eq!(crate::model::events::address(found.flow.saddr).to_string(), "fd99::2");
        for odd in [
            "",
            "  sl  local_address rem_address   st",
            "1: 1:2 3:4 01 0 0 0 0 0 9",
            "1: é0100007:1F90 0:0 01 a b c d e 9",
        ] {
            assert_eq!(connection(odd, 5), None, "{odd}");
        }
    }

    #[test]
    fn this_process_holds_its_own_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let text = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let port = ours.local_addr().unwrap().port();
        let found = text.lines().filter_map(|line| connection(line, 0)).find(|found| found.flow.sport == port).unwrap();
        assert_eq!(holders().unwrap().0.get(&found.inode), Some(&vec![std::process::id()]));
        let owner = describe(std::process::id(), &[]).unwrap();
        assert!(host::is_alive(owner.tgid, owner.born));
        assert!(fs::read("/proc/self/comm").unwrap().starts_with(crate::model::events::comm(&owner.comm).as_bytes()));
    }
}
