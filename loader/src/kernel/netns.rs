//! The network namespaces of this host, and running code inside one.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

use super::{capability, privilege};
use crate::error::{Blocked, Exit};

/// The calling thread's own namespace, and the folder of /proc that describes it. A thread can be in another namespace
/// than its process.
const OWN: &str = "/proc/thread-self/ns/net";
const OWN_NET: &str = "/proc/thread-self/net";

/// A network namespace that a file on this host leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    /// The inode number, which identifies the namespace.
    pub inode: u32,
    /// A file that stands for the namespace, as long as the thread or mount of that file lives.
    pub path: PathBuf,
}

/// Every network namespace that a thread is in, or that is mounted in any mount namespace (by `ip netns` or a container
/// runtime). Each namespace is listed once. A mounted namespace is listed with its mount, if it may be entered. A
/// namespace that only an open descriptor or a socket keeps is missing, since /proc does not lead to it.
///
/// # Errors
/// If /proc cannot be read at all. Processes that end meanwhile are skipped.
pub fn all() -> Result<Vec<Netns>> {
    let mut found = Found::default();
    let processes: Vec<_> = fs::read_dir("/proc").context("cannot read /proc")?.flatten().collect();
    let pids = processes.iter().filter(|entry| is_number(&entry.file_name()));
    let pids: Vec<_> = pids.map(fs::DirEntry::path).collect();
    // A mount lasts longer than most processes. But a user who may not enter a mount can still read the files of /proc
    // about a process.
    if privilege::effective()?.has(capability::SYS_ADMIN) {
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
    /// Add this namespace, if it is a new one.
    fn add(&mut self, inode: u32, path: PathBuf) {
        if self.seen.insert(inode) {
            self.all.push(Netns { inode, path });
        }
    }

    /// Add the namespaces that are mounted in the mount namespaces of these processes.
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
                    // The owner of that mount namespace may have mounted anything over this path.
                    if let Ok((_, inode)) = open(&path) {
                        self.add(inode, path);
                    }
                }
            }
        }
    }

    /// Add the namespaces that threads of these processes are in.
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

/// Open a file if it stands for a network namespace. The result also has the inode number, which identifies the
/// namespace. Another file is not opened: opening a FIFO can wait for ever, and opening a device can do anything.
///
/// # Errors
/// `InvalidInput` if the file stands for something else; otherwise the kernel's errno.
pub fn open(path: &Path) -> io::Result<(File, u32)> {
    let other = || io::Error::new(io::ErrorKind::InvalidInput, "it does not stand for a network namespace");
    // This open does not go through the standard library. With musl, the library takes O_PATH for a part of the access
    // mode and leaves it out.
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

/// The folder of the names that `ip netns` gives to network namespaces.
const NAMED: &str = "/run/netns";

/// The name of a namespace when the folder was read.
#[derive(Debug)]
struct NamedNetns {
    name: String,
    /// Whether the namespace still has the name: asked once, until [`Names::forget`].
    holds: Option<bool>,
}

/// The names that `ip netns` gives to network namespaces.
#[derive(Debug, Default)]
pub struct Names {
    /// The first namespace that was noted.
    first: Option<u32>,
    several: bool,
    /// By inode number.
    known: HashMap<u32, NamedNetns>,
    /// When the folder was read last.
    read: Option<Instant>,
}

impl Names {
    /// The least time between two looks at the folder.
    const EVERY: Duration = Duration::from_secs(1);

    /// Note a namespace. Returns whether there were several so far: before, nobody has to tell them apart.
    pub fn note(&mut self, inum: u32) -> bool {
        self.several |= *self.first.get_or_insert(inum) != inum;
        self.several
    }

    /// Note that time has passed: a name may have gone, or mean another namespace by now.
    pub fn forget(&mut self) {
        self.known.values_mut().for_each(|known| known.holds = None);
    }

    /// The name of the namespace with this inode number. None: no name was found when the folder was read last, at most one second
    /// ago.
    pub fn of(&mut self, inum: u32) -> Option<&str> {
        if !self.has(inum) && self.read.is_none_or(|read| read.elapsed() >= Self::EVERY) {
            let files = fs::read_dir(NAMED).into_iter().flatten().flatten();
            let names = files.filter_map(|file| file.file_name().into_string().ok());
            let known =
                |name: String| Some((inode(&Path::new(NAMED).join(&name)).ok()?, NamedNetns { name, holds: None }));
            self.known = names.filter_map(known).collect();
            self.read = Some(Instant::now());
            self.has(inum);
        }
        self.known.get(&inum).filter(|known| known.holds == Some(true)).map(|known| known.name.as_str())
    }

    /// Whether the namespace still has the name that is known.
    fn has(&mut self, inum: u32) -> bool {
        self.known.get_mut(&inum).is_some_and(|NamedNetns { name, holds }| {
            *holds.get_or_insert_with(|| inode(&Path::new(NAMED).join(&*name)).is_ok_and(|now| now == inum))
        })
    }
}

/// The inode number of the network namespace that a user names. The text is this number, a file that stands for the
/// namespace (`/proc/PID/ns/net`), or the name for `ip netns`.
///
/// # Errors
/// If the text is none of these.
pub fn find(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(0) => bail!("no network namespace has the inode number 0"),
        Ok(inode) => return Ok(inode),
        Err(_) => {}
    }
    let folder = Path::new(if text.contains('/') { "" } else { NAMED });
    let (_, inode) = open(&folder.join(text)).with_context(|| {
        format!("cannot find network namespace {text}: give its inode number, its name in {NAMED}, or a path such as /proc/PID/ns/net")
    })?;
    Ok(inode)
}

/// The flag of clone(2) that makes a namespace of this kind.
fn kind_of_namespace(file: BorrowedFd<'_>) -> io::Result<CloneFlags> {
    nix::ioctl_none_bad!(get_kind, libc::NS_GET_NSTYPE);
    // SAFETY: the request takes no argument, and changes nothing.
    Ok(CloneFlags::from_bits_retain(unsafe { get_kind(file.as_raw_fd()) }?))
}

/// The mount points of network namespaces, according to a mountinfo file. The fields of a line are separated by spaces.
/// The fourth field is the root of the mount (`net:[4026531840]`). The fifth is its mount point, with some bytes as
/// octal escapes (proc(5)).
fn nsfs_mounts(mountinfo: &[u8]) -> impl Iterator<Item = PathBuf> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        root.starts_with(b"net:[").then(|| PathBuf::from(std::ffi::OsString::from_vec(unescape(place))))
    })
}

/// Decode `\040` and other octal escapes into the bytes that they stand for.
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
    /// Do `work` inside the namespace. A thread of its own enters the namespace, so that no thread has to return from
    /// there. None: the namespace is gone, or its file stands for another namespace by now.
    ///
    /// # Errors
    /// [`Exit::Host`] if the namespace may not be entered; otherwise the errors of `work`.
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

    /// As [`Netns::enter`], and without a capability if the calling thread is in the namespace.
    ///
    /// # Errors
    /// The errors of [`Netns::enter`].
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<Option<T>> {
        if inode(Path::new(OWN)).is_ok_and(|inode| inode == self.inode) { work().map(Some) } else { self.enter(work) }
    }

    /// Call `read` with a `/proc/.../net` folder of the namespace. Entering takes CAP_SYS_ADMIN. That capability is not
    /// needed if the calling thread, or the thread behind the path, is in the namespace. None: the namespace is gone,
    /// or its file stands for another namespace by now.
    ///
    /// # Errors
    /// The errors of [`Netns::enter`].
    pub fn read_net<T: Send>(&self, read: impl FnOnce(&Path) -> Result<T> + Send) -> Result<Option<T>> {
        let leads_here = |path: &Path| inode(path).is_ok_and(|inode| inode == self.inode);
        if leads_here(Path::new(OWN)) {
            return read(Path::new(OWN_NET)).map(Some);
        }
        let Some(folder) = folder_of(&self.path) else {
            return self.enter(|| read(Path::new(OWN_NET)));
        };
        match read(&folder) {
            // This check comes after the read: the thread may have ended or moved meanwhile.
            Ok(what) => Ok(leads_here(&self.path).then_some(what)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The folder `/proc/PID/task/TID/net` for the path `/proc/PID/task/TID/ns/net`.
fn folder_of(path: &Path) -> Option<PathBuf> {
    let thread = path.strip_prefix("/proc").ok()?.to_str()?.strip_suffix("/ns/net")?;
    let is_thread = matches!(thread.split('/').collect::<Vec<_>>()[..], [_, "task", _]);
    is_thread.then(|| Path::new("/proc").join(thread).join("net"))
}

fn is_gone(error: &Error) -> bool {
    // A zombie has no namespaces: EINVAL. A thread that has ended has no files: ENOENT, or ESRCH if a file was open.
    let code = error.downcast_ref().and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::ENOENT | libc::ESRCH | libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_apart_once_there_are_two() {
        let mut names = Names::default();
        assert_eq!([7, 7, 8, 7].map(|inum| names.note(inum)), [false, false, true, true]);
    }

    #[test]
    fn our_own_namespace_is_among_them() {
        let own = inode(Path::new("/proc/self/ns/net")).unwrap();
        let all = all().unwrap();
        assert!(all.iter().any(|netns| netns.inode == own), "{all:?}");
    }

    #[test]
    fn only_network_namespaces_are_accepted() {
        let (_, inode) = open(Path::new("/proc/self/ns/net")).unwrap();
        assert_eq!(inode, super::inode(Path::new("/proc/self/ns/net")).unwrap());
        for other in ["/proc/self/ns/mnt", "/proc/self/stat", "/dev/null", "/"] {
            assert_eq!(open(Path::new(other)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{other}");
        }
    }

    #[test]
    fn a_threads_own_network_namespace_is_read() {
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

    #[test]
    fn a_namespace_is_named_by_number_or_file() {
        let inode = fs::metadata("/proc/self/ns/net").unwrap().ino();
        assert_eq!(u64::from(find("/proc/self/ns/net").unwrap()), inode);
        assert_eq!(find("4026531840").unwrap(), 4_026_531_840);
        for wrong in ["/nonexistent", "/proc/self/ns/mnt", "/dev/null", "0", "", "no-such-name"] {
            assert!(find(wrong).is_err(), "{wrong}");
        }
    }
}
