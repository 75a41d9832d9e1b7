//! Seeding in user space, for kernels whose open files have no iterator (before 5.8): `/proc/PID/fd` says who holds which
//! socket, by inode number, and `/proc/net/tcp` of each network namespace which connection that is.
//!
//! The programs keep listeners, and one of two sockets of the same four-tuple, by kernel address, which /proc does not tell.
//! Here the inode number stands for that.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::Seeded;
use crate::events::{COMM_LEN, Flow, How, Owner, Plain};
use crate::kernel::map::Map;
use crate::kernel::netns::Netns;
use crate::kernel::{host, netns};

/// Remember every connection that a process holds. What the programs have learned meanwhile is newer, and stays.
///
/// `cgroup` is the id of the cgroup that the user asked for, or 0.
///
/// # Errors
/// If /proc cannot be read, or the map not written.
pub fn seed(map: &Map<'_>, cgroup: u64) -> Result<Seeded> {
    let (holders, closed_processes) = holders()?;
    let mut seeded = Seeded { closed_processes, ..Seeded::default() };
    let (mut owners, mut inserted) = (HashMap::new(), Vec::new());
    for netns in netns::all()? {
        let Some(connections) = connections(&netns)? else {
            seeded.closed_namespaces += 1;
            continue;
        };
        let mut flows = HashSet::new();
        let twins: HashSet<Flow> = connections.iter().map(|one| one.flow).filter(|flow| !flows.insert(*flow)).collect();
        for mut connection in connections {
            let inode = connection.inode;
            let Some(&tgid) = holders.get(&inode) else { continue };
            let Some(owner) = owners.entry(tgid).or_insert_with(|| describe(tgid, cgroup)) else { continue };
            let owner = bytes(&Owner { pid: inode, ..*owner });
            let mut result = map.insert(&bytes(&connection.flow), &owner);
            // Where the programs know the socket of the entry, of two twins it may be either.
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
                Ok(true) => inserted.push((netns.clone(), connection)),
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => seeded.no_room += 1,
                Err(error) => return Err(error).context("cannot write to the map SOCKET_TO_PID"),
            }
        }
    }
    seeded.sockets = inserted.len() - forget_ended(map, &inserted)?;
    Ok(seeded)
}

/// The key of a socket that its addresses do not tell from others.
fn by_inode(inode: u64) -> Flow {
    Flow { sk: inode, ..Flow::default() }
}

/// Whose entry this is, by the inode number of its file; none if there is none, or the programs know the socket.
fn seeded_inode(map: &Map<'_>, key: &Flow) -> Option<u64> {
    let mut value = vec![0; size_of::<Owner>()];
    map.lookup(&bytes(key), &mut value).ok()?;
    let owner = Owner::get(&value);
    (owner.sk == 0).then_some(owner.pid)
}

/// A connection that ended between our look at it and its entry was never forgotten: the programs saw its end before
/// there was an entry. How many entries were taken back.
fn forget_ended(map: &Map<'_>, inserted: &[(Netns, Connection)]) -> Result<usize> {
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
        // An entry with a socket is the programs' own by now.
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

/// Inode number of each open socket, of any protocol, to the process that holds it; of several the one with the lowest
/// PID, as the iterator has it. And the number of processes whose files may not be seen.
fn holders() -> Result<(HashMap<u64, u32>, usize)> {
    let processes = fs::read_dir("/proc").context("cannot read /proc")?.flatten();
    let mut pids: Vec<u32> = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    let (mut holders, mut closed) = (HashMap::new(), 0);
    for pid in pids {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        let mut is_closed = fds.as_ref().is_err_and(denied);
        for fd in fds.into_iter().flatten().flatten() {
            let target = fs::read_link(fd.path());
            // Who may list them need not be allowed to see what they are.
            is_closed |= target.as_ref().is_err_and(denied);
            let inode = target
                .ok()
                .as_deref()
                .and_then(Path::to_str)
                .and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                holders.entry(inode).or_insert(pid);
            }
        }
        closed += usize::from(is_closed);
    }
    Ok((holders, closed))
}

/// A line of /proc/net/tcp: a socket with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    /// The key that it is kept by.
    flow: Flow,
    /// Of its file.
    inode: u64,
}

/// The connections of a network namespace that a file stands for, of which there are none if it is gone; `None` if only
/// entering it would tell, and that is not permitted.
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
/// field. Neither the headings nor what has no file are connections.
fn connection(line: &str, netns: u32) -> Option<Connection> {
    const LISTEN: u8 = 10;
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
    Some(Connection { flow: Flow { saddr, daddr, sk: 0, netns, sport, dport }, inode })
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

/// A process as `describe()` in owner.bpf.h would describe it; none if it is gone.
fn describe(tgid: u32, cgroup: u64) -> Option<Owner> {
    let read = |name: &str| fs::read(format!("/proc/{tgid}/{name}")).ok();
    let born = host::started(tgid).ok()??;
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
        born,
        cgroup: cgroups.first().copied().unwrap_or(0),
        tgid,
        tid: tgid,
        uid,
        how: How::Seed as u8,
        in_cgroup: u8::from(cgroup != 0 && cgroups.contains(&cgroup)),
        comm,
        ..Owner::default()
    })
}

/// Ids of a process's cgroup (v2) and of those above it, from its /proc/PID/cgroup.
fn cgroups(text: &str) -> Vec<u64> {
    const ROOT: &str = "/sys/fs/cgroup";
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let full: PathBuf = Path::new(ROOT).join(path);
    let own = full.ancestors().take_while(|path| path.starts_with(ROOT));
    own.filter_map(|path| fs::metadata(path).ok()).map(|about| about.ino()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_line_is_a_connection_and_a_listener_is_known_by_its_file() {
        let word = |bytes: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(bytes));
        let line = |local: &str, remote: &str, state: &str, inode: u32| {
            format!(
                "   1: {local}:1F90 {remote}:01BB {state} 00000000:00000000 00:00000000 00000000  1000        0 {inode} 1 x 20"
            )
        };
        let (home, away) = (word([127, 0, 0, 1]), word([10, 9, 8, 7]));
        let found = connection(&line(&home, &away, "01", 77), 5).unwrap();
        assert_eq!((found.inode, found.flow.netns, found.flow.sk), (77, 5, 0));
        assert_eq!((found.flow.sport, found.flow.dport), (8080, 443));
        assert_eq!(crate::events::address(found.flow.daddr).to_string(), "10.9.8.7");
        assert_eq!(connection(&line(&home, &away, "0A", 77), 5), Some(Connection { flow: by_inode(77), inode: 77 }));
        assert_eq!(connection(&line(&home, &away, "06", 0), 5), None);
        let v6 = [word([0xfd, 0x99, 0, 0]), word([0; 4]), word([0; 4]), word([0, 0, 0, 2])].concat();
        let found = connection(&line(&v6, &v6, "08", 1), 5).unwrap();
        assert_eq!(crate::events::address(found.flow.saddr).to_string(), "fd99::2");
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
        assert_eq!(holders().unwrap().0.get(&found.inode), Some(&std::process::id()));
        let owner = describe(std::process::id(), 0).unwrap();
        assert!(host::is_alive(owner.tgid, owner.born));
        assert!(fs::read("/proc/self/comm").unwrap().starts_with(crate::events::comm(&owner.comm).as_bytes()));
    }
}
