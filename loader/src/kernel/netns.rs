//! The network namespaces of this host, and how to do something inside one.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Error, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::privilege;
use crate::fault::{Blocked, Exit};

/// What the asking thread sees, whatever the process does: its namespace, and what /proc tells of that.
const OWN: &str = "/proc/thread-self/ns/net";
const OWN_NET: &str = "/proc/thread-self/net";

/// A network namespace that something on this host leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// The inode number that names it.
    pub inode: u32,
    /// A file that stands for it, as long as what it belongs to lives.
    pub path: PathBuf,
}

/// Every network namespace that a thread is in, or that is mounted (`ip netns`, container runtimes) in any mount
/// namespace; each once, those that are mounted by their mount if that may be entered. Where only an open descriptor or a
/// socket keeps a namespace, /proc leads nowhere, and it is not among them.
///
/// # Errors
/// If /proc cannot be read at all. Processes that end meanwhile are passed over.
pub fn all() -> Result<Vec<Netns>> {
    let mut found = Found::default();
    let processes: Vec<_> = fs::read_dir("/proc").context("cannot read /proc")?.flatten().collect();
    let pids = processes.iter().filter(|entry| is_number(&entry.file_name()));
    let pids: Vec<_> = pids.map(fs::DirEntry::path).collect();
    // A mount lasts longer than most processes. But who may not enter one can still read what /proc tells of a process.
    if privilege::effective()?.has(privilege::SYS_ADMIN) {
        found.mounted(&pids);
        found.of_threads(&pids);
    } else {
        found.of_threads(&pids);
        found.mounted(&pids);
    }
    Ok(found.all)
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
}

#[derive(Default)]
struct Found {
    seen: HashSet<u32>,
    all: Vec<Netns>,
}

impl Found {
    /// Add it, if it is a new one.
    fn add(&mut self, inode: u32, path: PathBuf) {
        if self.seen.insert(inode) {
            self.all.push(Netns { inode, path });
        }
    }

    /// Those that are mounted where these processes are.
    fn mounted(&mut self, pids: &[PathBuf]) {
        let mut mount_namespaces = HashSet::new();
        for process in pids {
            let Ok(about) = fs::metadata(process.join("ns/mnt")) else { continue };
            if mount_namespaces.insert(about.ino()) {
                let mounts = fs::read(process.join("mountinfo")).unwrap_or_default();
                let own = about.ino() == fs::metadata("/proc/self/ns/mnt").map_or(0, |own| own.ino());
                let root = if own { PathBuf::from("/") } else { process.join("root") };
                for path in nsfs_mounts(&mounts) {
                    let path = root.join(path.strip_prefix("/").unwrap_or(&path));
                    // It may be mounted over, by whoever made that mount namespace, with anything.
                    if let Ok((_, inode)) = open(&path) {
                        self.add(inode, path);
                    }
                }
            }
        }
    }

    /// Those that threads of these processes are in.
    fn of_threads(&mut self, pids: &[PathBuf]) {
        for process in pids {
            for thread in fs::read_dir(process.join("task")).into_iter().flatten().flatten() {
                let path = thread.path().join("ns/net");
                if let Ok(inode) = inode(&path) {
                    self.add(inode, path);
                }
            }
        }
    }
}

/// The inode number of the namespace behind a file.
fn inode(path: &Path) -> io::Result<u32> {
    u32::try_from(fs::metadata(path)?.ino()).map_err(io::Error::other)
}

/// Open a file if it stands for a network namespace; with the inode number that names that. Another file is not touched:
/// opening can wait for ever (a FIFO), and do anything (a device).
///
/// # Errors
/// `InvalidInput` if it is something else; else the kernel's errno.
pub fn open(path: &Path) -> io::Result<(File, u32)> {
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "it does not stand for a network namespace");
    // Not by the standard library, which with musl takes O_PATH for a part of the access mode and leaves it out.
    let place = nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    if fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Err(other());
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    if kind_of_namespace(file.as_fd())? != CloneFlags::CLONE_NEWNET {
        return Err(other());
    }
    let inode = u32::try_from(file.metadata()?.ino()).map_err(io::Error::other)?;
    Ok((file, inode))
}

/// The flag of clone(2) that makes such a namespace.
fn kind_of_namespace(file: BorrowedFd<'_>) -> io::Result<CloneFlags> {
    nix::ioctl_none_bad!(get_kind, libc::NS_GET_NSTYPE);
    // SAFETY: the request takes no argument, and changes nothing.
    Ok(CloneFlags::from_bits_retain(unsafe { get_kind(file.as_raw_fd()) }?))
}

/// Where network namespaces are mounted, according to a mountinfo file: its fields are separated by spaces, the fourth is
/// the root of the mount (`net:[4026531840]`) and the fifth its place, with some bytes as octal escapes (proc(5)).
fn nsfs_mounts(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        root.starts_with(b"net:[").then(|| PathBuf::from(std::ffi::OsString::from_vec(unescape(place))))
    })
}

/// `\040` and the like as the bytes that they stand for.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    bytes
}

impl Netns {
    /// Do `work` inside. A thread of its own enters, so that nothing must find the way back. None: it is gone, or its file
    /// stands for another by now.
    ///
    /// # Errors
    /// [`Exit::Host`] if it may not be entered; else those of `work`.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<Option<T>> {
        let file = match open(&self.path) {
            Ok((file, inode)) if inode == self.inode => file,
            _ => return Ok(None),
        };
        let inside = || {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| {
                let what = format!("cannot enter network namespace {}", self.inode);
                match error {
                    Errno::EPERM => {
                        anyhow!(error).context(Blocked::new(what, "it needs CAP_SYS_ADMIN")).context(Exit::Host)
                    }
                    _ => anyhow!(error).context(what),
                }
            })?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|_| Err(anyhow!("the thread in network namespace {} panicked", self.inode)))
            .map(Some)
    }

    /// Let `read` see what `/proc/.../net` tells of it, a folder. What we see ourselves, or a thread does, can be read
    /// without entering, which takes CAP_SYS_ADMIN. None: it is gone, or its file stands for another by now.
    ///
    /// # Errors
    /// As [`Netns::enter`].
    pub fn read_net<T: Send>(&self, read: impl FnOnce(&Path) -> Result<T> + Send) -> Result<Option<T>> {
        let leads_here = |path: &Path| inode(path).is_ok_and(|inode| inode == self.inode);
        if leads_here(Path::new(OWN)) {
            return read(Path::new(OWN_NET)).map(Some);
        }
        let Some(folder) = folder_of(&self.path) else {
            return self.enter(|| read(Path::new(OWN_NET)));
        };
        match read(&folder) {
            // Asked afterwards: meanwhile the thread may have ended, or moved.
            Ok(what) => Ok(leads_here(&self.path).then_some(what)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `/proc/PID/task/TID/net`, of `/proc/PID/task/TID/ns/net`.
fn folder_of(path: &Path) -> Option<PathBuf> {
    let thread = path.strip_prefix("/proc").ok()?.to_str()?.strip_suffix("/ns/net")?;
    let is_thread = matches!(thread.split('/').collect::<Vec<_>>()[..], [_, "task", _]);
    is_thread.then(|| Path::new("/proc").join(thread).join("net"))
}

fn is_gone(error: &Error) -> bool {
    // A zombie has no namespaces: EINVAL. A thread that ended has no files: ENOENT, or ESRCH where one was open.
    let code = error.downcast_ref().and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::ENOENT | libc::ESRCH | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn our_own_namespace_is_among_them() {
        let own = inode(Path::new("/proc/self/ns/net")).unwrap();
        let all = all().unwrap();
        assert!(all.iter().any(|netns| netns.inode == own), "{all:?}");
    }

    #[test]
    fn nothing_but_a_network_namespace_is_taken_for_one() {
        let (_, inode) = open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(inode, super::inode(Path::new("/proc/self/ns/net")).unwrap());
        for other in ["/proc/self/ns/mnt", "/proc/self/stat", "/dev/null", "/"] {
            assert_eq!(open(Path::new(other)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{other}");
        }
    }

    #[test]
    fn a_thread_is_read_where_it_is() {
        let net = folder_of(Path::new("/proc/12/task/13/ns/net"));
        assert_eq!(net, Some(PathBuf::from("/proc/12/task/13/net")));
        assert_eq!(folder_of(&Path::new("/proc/12/root").join("run/netns/a")), None);
        assert_eq!(folder_of(Path::new("/run/netns/a")), None);
    }

    #[test]
    fn mounts_of_namespaces_are_found_whatever_their_name() {
        let mountinfo = b"22 1 0:20 / /proc rw - proc proc rw\n\
            451 27 0:4 net:[4026532281] /run/netns/a\\040b\\134 rw shared:220 - nsfs nsfs rw\n\
            452 27 0:4 mnt:[4026532282] /run/x rw - nsfs nsfs rw\n453 27\n";
        let found: Vec<_> = nsfs_mounts(mountinfo).collect();
        assert_eq!(found, [PathBuf::from("/run/netns/a b\\")]);
        assert_eq!(unescape(b"\\04"), b"\\04");
        assert_eq!(unescape(b"\\999"), b"\\999");
    }
}
